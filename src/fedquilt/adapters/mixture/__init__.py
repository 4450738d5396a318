"""Dense mixtures of adapters: the module, how it comes into a model, and its files."""
