"""Names of vertical federations in run files."""

from __future__ import annotations

from typing import Literal

VERTICAL = "vertical"
"""The partition scheme in which parties hold other columns of the same rows."""

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right", "left", "right", "top", "bottom"]
"""A part of an image that a party may hold."""
