"""Many texts at once by one network: continuous batching by rows, and an OpenAI-compatible server on top of it."""
