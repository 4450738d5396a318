"""The command ``fedquilt``: one file per subcommand, which parses, calls one function and prints."""

from fedquilt.cli.app import main

__all__ = ["main"]
