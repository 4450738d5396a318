"""Adapters: LoRA, mixtures of adapters and full fine-tuning, and the folders that they are saved in."""
