"""Correctness of the answers of a language model."""
