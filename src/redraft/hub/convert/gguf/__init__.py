"""GGUF files in: header, tensors and tokenizer, read as data under the names of `transformers`."""
