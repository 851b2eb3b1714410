"""From a configuration to weights: budget, loop, checkpoints, journal."""
