"""Pure mathematics of corruption: schedules, kernels, counters. Imports torch alone."""
