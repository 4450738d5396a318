"""The Flower engine; the only package that imports flwr, and only runs that use it load it."""
