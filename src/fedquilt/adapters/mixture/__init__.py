"""Dense mixtures of adapters: the module, its injection into models, and its files."""
