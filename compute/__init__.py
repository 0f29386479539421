"""What is computed from a bank: distances, coefficients, combinations."""
