"""Pretraining of the built-in base models on generated data."""
