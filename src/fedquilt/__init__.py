"""fedquilt: federated fine-tuning of foundation models across clients that do not match."""

__version__ = "0.1.0.dev0"
