"""Differential privacy of whole clients: noise as a change of any method, and what it is worth."""
