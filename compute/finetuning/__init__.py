"""A few training steps on a dataset's own labelled examples, from a predicted adapter on."""
