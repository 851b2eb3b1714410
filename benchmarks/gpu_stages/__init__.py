"""The stages of benchmarks/gpu.py: each runs in a process of its own and writes what it finds to one JSON file."""
