"""How good predictions are: by generated answers, and by weights."""
