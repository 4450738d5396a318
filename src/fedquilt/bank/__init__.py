"""H2Tune's bank of cores that architectures share: its merge, its slots, and the client's side."""
