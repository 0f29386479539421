"""Which adapters of a bank began with the same A factors: it decides what averaging A and B apart loses."""
