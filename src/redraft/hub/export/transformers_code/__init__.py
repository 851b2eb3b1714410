"""The code of an exported folder, which `transformers` reads there. It imports torch and transformers, never redraft."""
