"""The neural approach: a scalar network trained through the Gram matrix."""
