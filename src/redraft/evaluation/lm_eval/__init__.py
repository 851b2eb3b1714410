"""lm-evaluation-harness over every family, on tasks read from local files."""
