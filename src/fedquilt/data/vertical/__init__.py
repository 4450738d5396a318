"""Data of vertical federations: who holds which rows, and what a party sees of them."""
