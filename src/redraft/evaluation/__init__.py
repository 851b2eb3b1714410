"""Scores: likelihood bounds with error bars, samples with a judge, speed; and one run from start to record."""
