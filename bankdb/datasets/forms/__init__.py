"""In which form examples are written: which columns are read, and how they become input and output."""
