"""Engines, which carry orders to clients and replies back; methods are independent of the engine."""
