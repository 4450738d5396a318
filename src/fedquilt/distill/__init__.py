"""Distillation between language models: which samples to teach, likelihoods of paths, losses."""
