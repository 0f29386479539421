"""Networks of the neural approach, trained on a bank and kept."""
