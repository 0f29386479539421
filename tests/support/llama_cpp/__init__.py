"""What runs beside real llama.cpp: see `make test-llamacpp`."""
