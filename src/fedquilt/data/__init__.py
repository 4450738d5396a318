"""Reading data, and cutting it into clients."""
