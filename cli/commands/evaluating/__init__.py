"""What `bank evaluate` prints beside its tables: weights, and curves of training."""
