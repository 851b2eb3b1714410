"""The queue of a study: its runs carried out by any number of workers, and learning rates tuned."""
