"""Readers: from a location to columns."""
