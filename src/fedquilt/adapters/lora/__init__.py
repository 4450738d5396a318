"""LoRA: the module, how it comes into a model, cores between its factors, and PEFT's files."""
