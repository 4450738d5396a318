"""Engines carry orders to clients and replies back; a method does not know which one it runs on."""
