"""Tests that take more than five seconds on two slow cores, and why. `make quick` leaves them out."""

from __future__ import annotations

PROCESSES = "starts processes that import torch, and kills some of them"
RANKS = "trains on several ranks, each a process"
SAMPLES = "8 000 samples in 256 steps, for a bias below what the law allows"
COMPILES = "compiles with inductor or Dynamo"
NODES = "quadrature over all states of the world"
TRAINS = "trains a model until it has learned"
FUZZES = "thousands of damaged inputs"
FITS = "many fits, each with its resamples"

# The beginning of a test's name within tests/, without parameters; a file stands for all of its tests.
SLOW = {
    "training/test_distributed.py": RANKS,
    "training/test_launch.py": PROCESSES,
    "training/test_checkpoints.py": RANKS,
    "studies/test_execute.py": PROCESSES,
    "laws/test_sampling.py::test_exact_samplers_converge_to_the_data": SAMPLES,
    "laws/test_sampling.py::test_prompted_samples_follow_the_conditional": SAMPLES,
    "training/test_compile.py": COMPILES,
}
