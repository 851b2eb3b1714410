"""Foreign checkpoints in: read without running code, mapped to our layout, checked against reference logits."""
