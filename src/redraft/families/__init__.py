"""One file = one paper: how text is corrupted, what the network is shown, what it is charged, how to go back."""
