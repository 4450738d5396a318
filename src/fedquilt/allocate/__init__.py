"""Allocation: budgets of capability groups, sets of layers, and importance of layers."""
