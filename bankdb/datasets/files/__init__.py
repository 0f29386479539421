"""How examples lie in files: compressed, saved by `datasets`, or in one of the shapes of JSON."""
