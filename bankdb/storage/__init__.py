"""The parts that a bank is made of: where they are, how a new one begins, and opening them together."""
