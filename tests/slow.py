"""Tests that take more than five seconds on two slow cores, and why. `make quick` leaves them out."""

from __future__ import annotations

PROCESSES = "starts processes that import torch, and kills some of them"
RANKS = "trains on several ranks, each a process that imports torch"
SAMPLES = "8 000 samples in 256 steps, for a bias below what the law allows"
COMPILES = "compiles with inductor or Dynamo"
TRAINS = "trains a model until it has learned, or until trouble shows"
COVERS = "hundreds of planted studies: the share of intervals that hold the truth"
PAGES = "fits with 400 resamples, and draws every figure"
DRAWS = "draws enough to see what is rarer than one in 2^24"
WHEEL = "builds the wheel, or imports what it installed in a process of its own"
HARNESS = "lm-evaluation-harness with every estimator and batch size"
NETWORK = "waits for a hub that does not answer"

# The beginning of a test's name within tests/, without parameters; a file stands for all of its tests.
SLOW = {
    "evaluation/test_harness.py": HARNESS,
    "evaluation/test_tasks.py::test_public_sets_ask_as_lm_eval_asks": HARNESS,
    "hub/test_export.py::test_a_clean_environment_opens_it_with_the_same_log_p": PROCESSES,
    "hub/test_remote.py": NETWORK,
    "laws/test_sampling.py::test_exact_samplers_converge_to_the_data": SAMPLES,
    "laws/test_sampling.py::test_prompted_samples_follow_the_conditional": SAMPLES,
    "noise/test_counter_rng.py::test_tail_of_a_large_vocabulary_has_its_share": DRAWS,
    "report/test_exports.py": PAGES,
    "report/test_report.py": PAGES,
    "scaling/test_approaches.py": COVERS,
    "scaling/test_coverage.py": COVERS,
    "scaling/test_fit_files.py": PAGES,
    "scaling/test_isoflop.py": COVERS,
    "scaling/test_parametric.py": COVERS,
    "scaling/test_schema.py": PAGES,
    "scaling/test_small_grids.py": PAGES,
    "studies/test_execute.py": PROCESSES,
    "test_device_flags.py": TRAINS,
    "test_gpu_script.py": PROCESSES,
    "test_wheel.py": WHEEL,
    "training/test_checkpoints.py": RANKS,
    "training/test_compile.py": COMPILES,
    "training/test_distributed.py": RANKS,
    "training/test_finetune.py": TRAINS,
    "training/test_health.py": TRAINS,
    "training/test_launch.py": PROCESSES,
    "training/test_ranks.py": RANKS,
    "training/test_resume.py": PROCESSES,
}
