"""Tests whose cases take more than five seconds together, and why. `make quick` leaves them out."""

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
EVERYTHING = "every family by every sampler, estimator or layout: hundreds of small cases"
CHECKPOINTS = "writes, converts and opens a model folder for each family"
NETWORK = "waits for a hub that does not answer"

# The beginning of a test's name within tests/, without parameters; a file stands for all of its tests.
SLOW = {
    "evaluation/test_continuations.py::test_a_score_does_not_depend_on_batch_order_or_company": EVERYTHING,
    "evaluation/test_cost.py::test_the_passes_that_are_told_are_those_that_are_taken": EVERYTHING,
    "evaluation/test_harness.py": HARNESS,
    "evaluation/test_tasks.py::test_public_sets_ask_as_lm_eval_asks": HARNESS,
    "hub/test_convert_command.py::test_training_goes_on_from_a_converted_model": TRAINS,
    "hub/test_export.py::test_a_clean_environment_opens_it_with_the_same_log_p": PROCESSES,
    "hub/test_export.py::test_samples_have_the_law_of_our_reverse_chain": DRAWS,
    "hub/test_model.py::test_loaded_model_says_what_it_is": CHECKPOINTS,
    "hub/test_remote.py": NETWORK,
    "laws/test_bd3lm.py::test_cached_sampler_is_its_uncached_definition": EVERYTHING,
    "laws/test_bd3lm.py::test_draws_that_count_hidden_tokens_average_to_the_bound_of_hiding_by_chance": DRAWS,
    "laws/test_bound.py::test_bound_is_tight_to_quadrature_error": EVERYTHING,
    "laws/test_bound.py::test_bound_of_a_wrong_denoiser_is_above_the_entropy": EVERYTHING,
    "laws/test_bound.py::test_nelbo_draws_average_to_the_expected_bound": DRAWS,
    "laws/test_chain.py::test_ancestral_chain_tends_to_the_data": EVERYTHING,
    "laws/test_devices.py": EVERYTHING,
    "laws/test_estimators.py::test_an_estimate_does_not_depend_on_the_batch_size": EVERYTHING,
    "laws/test_psi.py::test_psi_step_has_the_law_of_its_definition": EVERYTHING,
    "laws/test_sampling.py::test_exact_samplers_converge_to_the_data": SAMPLES,
    "laws/test_sampling.py::test_prompted_samples_follow_the_conditional": SAMPLES,
    "noise/test_counter_rng.py::test_tail_of_a_large_vocabulary_has_its_share": DRAWS,
    "noise/test_gaussian_map.py::test_argmax_is_the_token_as_often_as_alpha_says": DRAWS,
    "planning/test_study_power.py::test_noise_and_correlation_of_an_earlier_study_are_found": COVERS,
    "report/test_exports.py": PAGES,
    "report/test_report.py": PAGES,
    "scaling/test_approaches.py": COVERS,
    "scaling/test_coverage.py": COVERS,
    "scaling/test_fit_files.py": PAGES,
    "scaling/test_isoflop.py": COVERS,
    "scaling/test_parametric.py": COVERS,
    "scaling/test_schema.py": PAGES,
    "scaling/test_small_grids.py": PAGES,
    "serving/test_engine.py::test_a_guided_text_in_company_is_the_text_alone": EVERYTHING,
    "serving/test_engine.py::test_a_text_in_company_is_the_text_alone": EVERYTHING,
    "serving/test_faults.py": PROCESSES,
    "serving/test_load.py": "many clients at once",
    "studies/test_execute.py": PROCESSES,
    "test_device_flags.py": TRAINS,
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
