"""What runs beside real llama.cpp and vLLM: see `make test-llamacpp` and `make test-vllm`."""
