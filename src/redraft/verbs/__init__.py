"""One file a verb: `arguments(parser)` and `run(options, overrides)`."""
