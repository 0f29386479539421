"""Answers to test splits that are not kept yet: generated in threads of this process, or by workers."""
