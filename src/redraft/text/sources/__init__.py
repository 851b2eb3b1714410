"""Where text comes from: documents of files and folders, their formats, and detokenisation."""
