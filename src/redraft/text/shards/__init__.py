"""Tokens on disk: shards and how they are prepared, and which tokens a training sample holds."""
