"""Text in, tokens out: tokenizers, documents, token shards on disk, and which tokens a training sample holds."""
