"""Figures, sentences and pages of a study. They read records and fits, and load no torch."""
