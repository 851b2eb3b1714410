"""Models on disk and in hand: the folder format, and the object a program talks to."""
