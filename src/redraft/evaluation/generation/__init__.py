"""Generated text: its time and FLOPs, its perplexity under evaluator models, its diversity; MT-bench."""
