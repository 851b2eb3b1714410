"""Tasks of "Scaling up Masked Diffusion Models on Text" (arXiv:2410.18514): data, one protocol for every family, a metric."""
