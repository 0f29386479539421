"""The commands of `bank`, a module for each group of them."""
