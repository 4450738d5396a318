"""H2Tune's shared bank of cores: its merge, the relation of layers to slots, and the client's side."""
