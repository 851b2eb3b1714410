"""One file per paper: the forward process, the network's input, the training loss and the reverse process."""
