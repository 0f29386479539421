"""The approaches of this project, a class each; what they compute with is loaded when they compute."""
