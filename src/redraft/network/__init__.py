"""Networks: a View in, hidden states and logits out. They know no family."""
