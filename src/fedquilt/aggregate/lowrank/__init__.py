"""Rules that combine low-rank factors, and the kernels under them."""
