"""Models out: folders for `transformers`, stock Llama folders, GGUF files, and the model card."""
