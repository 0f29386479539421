"""Adapters as their trainers wrote them, brought to a bank's layout: other names of its modules, other ranks."""
