"""Inner products of all adapters: plan, slices, matrix."""
