"""Malicious but well-formed replies against every method, rule and wrapper.

Clients send well-formed replies to their orders with harmful numbers: zeros, subnormal and huge ones, reversed updates,
weights and metrics at the ends of their ranges and beyond. Nothing is trained. A merge that raises, or leaves a number
that is not finite in the server's state, is reported as a failure. At the end, two of five clients attack each robust
rule, and the result is compared with the replies of the honest clients.

Exits with 1 if anything failed. A smaller version of this table is a test: ``tests/contract/test_hostile.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contract"))

import torch
from hostile import DEFAULT, attacked
from test_hostile import TABLE, outcome, ruled

from fedquilt.core.defence import UNBOUNDED, Defence


def fuzzed(num_replies: int, bounds: Defence) -> dict[str, Any]:
    """Attack with at least so many replies, spread evenly over the table; return counts and failures."""
    counts, failed, share = Counter[str](), dict[str, str](), -(-num_replies // len(TABLE))
    for name, build in TABLE.items():
        own, seed = Counter[str](), 0
        while own["hostile"] < share and name not in failed:
            try:
                own += attacked(build, range(seed, seed + 1), num_rounds=4, bounds=bounds)
            except Exception as error:  # whatever it is, it is what is looked for
                failed[name] = f"seed {seed}: {type(error).__name__}: {error}"
            seed += 1
        counts += own
    return {**{key: counts[key] for key in ("hostile", "taken", "dropped", "bounded", "merges")}, "failed": failed}


def outside(rule: str, bounds: Defence, num_seeds: int) -> float:
    """Return the largest distance of a coordinate from the range of the honest clients, in widths of that range."""
    worst = 0.0
    for seed in range(num_seeds):
        _, _, fair, after = outcome(ruled(rule), bounds, seed)
        for name in next(iter(fair.values())).params:
            values = torch.stack([reply.params[name].double() for reply in fair.values()])
            low, high = values.amin(0), values.amax(0)
            beyond = torch.maximum(low - after[name].double(), after[name].double() - high).clamp(min=0)
            worst = max(worst, float((beyond / (high - low).clamp(min=1e-6)).max()))
    return worst


def main() -> int:
    """Print the figures; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replies", type=int, default=20_000, help="smallest number of malicious replies")
    parser.add_argument("--seeds", type=int, default=25, help="attacks on each robust rule")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    began = time.perf_counter()
    found: dict[str, Any] = {
        "rows": len(TABLE),
        "default bounds": fuzzed(options.replies // 2, DEFAULT),
        "without bounds": fuzzed(options.replies // 2, UNBOUNDED),
        "beyond the honest range": {
            "median": outside("median", UNBOUNDED, options.seeds),
            "mean with default bounds": outside("mean", DEFAULT, options.seeds),
            "mean": outside("mean", UNBOUNDED, options.seeds),
        },
    }
    found["seconds"] = round(time.perf_counter() - began, 1)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        told(found)
    return 1 if found["default bounds"]["failed"] or found["without bounds"]["failed"] else 0


def told(found: dict[str, Any]) -> None:
    """Print the figures in words."""
    print(f"{found['rows']} methods, rules and wrappers, {found['seconds']} s")
    for kind in ("default bounds", "without bounds"):
        own = found[kind]
        print(
            f"{kind}: {own['hostile']} hostile replies in {own['merges']} merges; {own['dropped']} dropped, "
            f"{own['bounded']} bounded; {len(own['failed'])} rows failed"
        )
        for name, why in own["failed"].items():
            print(f"  {name}: {why}")
    print("two of five clients attack; beyond the range of the honest, in its widths:")
    for rule, worst in found["beyond the honest range"].items():
        print(f"  {rule:<26} {worst:.3g}")


if __name__ == "__main__":
    sys.exit(main())
