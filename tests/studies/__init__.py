"""Studies: planted worlds, and what the fits make of them."""
