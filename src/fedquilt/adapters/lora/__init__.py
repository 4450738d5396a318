"""LoRA: the module, its injection into models, cores between its factors, and PEFT's files."""
