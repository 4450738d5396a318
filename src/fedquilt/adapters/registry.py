"""Every kind of adapter, by its name in the run file."""

from __future__ import annotations

from fedquilt.adapters.common.anchored_kind import ANCHORED
from fedquilt.adapters.common.kind import COMMON
from fedquilt.adapters.full import FULL
from fedquilt.adapters.kind import Kind
from fedquilt.adapters.lora.kind import LORA
from fedquilt.adapters.mixture.kind import MIXTURE

KINDS: dict[str, Kind] = {"lora": LORA, "mixture": MIXTURE, "full": FULL, "common": COMMON, "anchored": ANCHORED}
"""The values of ``adapter.kind``."""
