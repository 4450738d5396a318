"""Help pages of the commands."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import click
from typer.core import TyperCommand
from typer.models import ArgumentInfo


class Command(TyperCommand):
    """A command whose help page shows the texts of its arguments, and brackets as they are.

    Typer below 0.21, which Flower asks for, escapes brackets for a page by rich even where rich does not draw it, and
    loses the texts of arguments with click 8.5.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, arguments with their texts."""
        found = super().get_params(ctx)
        hints = get_type_hints(inspect.unwrap(self.callback), include_extras=True) if self.callback else {}
        for param in found:
            for info in getattr(hints.get(param.name or ""), "__metadata__", ()):
                if isinstance(info, ArgumentInfo) and param.param_type_name == "argument":
                    param.help = info.help
        return found

    def get_help(self, ctx: click.Context) -> str:
        """The help page, with one section of arguments: click from 8.5 on adds one of its own to Typer's."""
        parts = super().get_help(ctx).replace("\\[", "[").split("\n\n")
        twice = any(part.startswith("Arguments:") for part in parts)
        return "\n\n".join(part for part in parts if not (twice and part.startswith("Positional arguments:")))
