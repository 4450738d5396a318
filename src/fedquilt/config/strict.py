"""How strictly the sections of a run file are checked."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

WITHOUT_SOURCE = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""For models that are made without a source, in which pydantic would look for docstrings: through all modules."""
