"""Models on disk and in memory: the folder format, and the `Model` class."""
