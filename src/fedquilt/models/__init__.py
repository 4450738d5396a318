"""Loading models: Hugging Face folders and hub names, tiny random models, published shapes."""
