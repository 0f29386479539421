"""Adapters as llama.cpp reads them: a GGUF file beside PEFT's two, or in their place."""
