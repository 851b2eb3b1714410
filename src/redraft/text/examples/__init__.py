"""Prompts and completions for fine-tuning, and chat templates."""
