"""Many replies to one: how the server makes its next tensors from what the clients sent."""
