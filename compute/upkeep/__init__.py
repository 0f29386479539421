"""What fills and checks a bank, on the workers of a cluster."""
