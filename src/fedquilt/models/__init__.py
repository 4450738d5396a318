"""Where models come from: Hugging Face folders and hub names, tiny random ones, published shapes."""
