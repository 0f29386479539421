"""From a bank to predicted adapters: matrices, coefficients, combinations, exports."""
