"""The speed-quality frontier: samples measured at every setting, the Pareto set, quality at one entropy."""
