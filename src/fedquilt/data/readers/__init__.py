"""Readers: the columns of a file, a folder or a data set of the hub."""
