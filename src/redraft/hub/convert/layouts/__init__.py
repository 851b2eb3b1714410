"""Foreign layouts, one file each: which tensors a checkpoint must have, and what each becomes in ours."""
