"""The command ``fedquilt``: one file for each subcommand, each of which parses, calls one function, and prints."""

from fedquilt.cli.app import main

__all__ = ["main"]
