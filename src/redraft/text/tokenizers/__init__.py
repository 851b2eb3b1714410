"""Text to ids and back, in this process or in several."""
