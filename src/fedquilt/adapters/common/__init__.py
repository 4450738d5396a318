"""Adapters in common coordinates: the trained matrices mean the same in every model."""
