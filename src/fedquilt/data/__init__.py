"""Reading data sets, and partitioning them over clients."""
