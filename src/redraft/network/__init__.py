"""Networks: they map a `View` to hidden states and logits, and do not depend on the model family."""
