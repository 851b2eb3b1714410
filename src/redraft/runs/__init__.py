"""One run: from a configuration to a folder with weights and a record; two results compared."""
