"""How answers get better with training steps, from a prediction and from nothing: measured on the bank's own tasks."""
