"""A bank kept elsewhere, and brought back: its catalogue, the list of its rows, and the rows."""
