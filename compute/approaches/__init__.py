"""From distances to coefficients, a file for each approach; pure functions of arrays."""
