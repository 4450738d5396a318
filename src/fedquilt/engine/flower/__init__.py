"""Flower as the engine: the only place that imports flwr. Nothing of fedquilt needs it until a run asks for it."""
