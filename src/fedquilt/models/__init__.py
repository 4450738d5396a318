"""Where models come from: Hugging Face folders and hub names, tiny random ones, and published shapes without weights."""
