"""Parts of distillation: how far one model's predictions are from another's."""
