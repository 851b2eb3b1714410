"""Scaling laws from tables of runs: records in, fits with intervals out. numpy and scipy alone; no torch."""
