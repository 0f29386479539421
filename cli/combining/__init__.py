"""Options of how sources are combined, whatever their coefficients are."""
