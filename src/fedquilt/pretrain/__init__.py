"""Base models that are made from generated data, not downloaded."""
