"""Merge methods: how tensors of several adapters become one, beside their weighted sum; pure."""
