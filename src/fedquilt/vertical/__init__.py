"""Parts of vertical federated learning, in which parties hold other columns of the same rows, as pure functions."""
