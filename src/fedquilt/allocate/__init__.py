"""Who trains what: budgets of capability groups, sets of layers, importance of layers."""
