"""Records read as plain rows, where there are many."""
