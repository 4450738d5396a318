"""Names of groups and parties, which also name folders."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from fedquilt.core.settings import Text


def _is_a_folder_name(label: str) -> str:
    if label.startswith(".") or not all(sign.isalnum() or sign in "-_. " for sign in label):
        raise ValueError("names a folder, so it holds letters, digits, '-', '_', '.' and spaces only")
    return label


Label = Annotated[Text, Field(max_length=100), AfterValidator(_is_a_folder_name)]
"""The name of a group or a party."""
