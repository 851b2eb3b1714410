"""Scores: likelihood bounds with error bars, lm-evaluation-harness, generated text under an evaluator model."""
