"""Meta-learning: from the validation loss to the weights of a schedule."""
