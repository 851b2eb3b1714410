"""The NELBO on held-out text, perplexity, log p(continuation | context), and their estimators."""
