"""Alignment of the clients' updates before they are averaged."""
