"""Time and memory of finding common coordinates for a model of LLaMA 3.2 1B's shape, with 2,000 public inputs.

The features are random, of the widths that attention and the feed-forward part have in that model: a few directions
that two models share, and noise. The forward passes that would make them are not part of the measurement. For each
module the client makes its basis, the server the consensus of two models, and the client its axes (encoder, decoder and
centre). A client works through a site's modules one by one, so the features of one are in memory at a time.

Each site is measured in a fresh process (Linux: memory is the growth of the peak resident memory, VmHWM, after the
features were made, with those features). Seconds of a site are 16 times those of the fastest of the measured modules,
since other load only adds to them; ``cpu`` is the process's own processor time, over all threads. Every module makes a
basis here, as with a slot for each block. Targets: a minute a site, and less memory than two copies of the site's
features, which a client would hold that kept all modules' at once. Exits with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedquilt.aggregate.axes import basis, consensus, decoder, solve
from fedquilt.core.rng import Rng
from fedquilt.models.shapes import published

SHAPE = "llama-3.2-1b"
SECONDS, COPIES = 60.0, 2.0
MEGABYTE = 2**20
_SHARED = 64


def widths() -> dict[str, tuple[int, int]]:
    """Return the widths of what goes into each site's last projection, and of what comes out."""
    shape = published(SHAPE)
    width = int(shape["hidden_size"])
    return {"attention": (width, width), "feed-forward": (int(shape["intermediate_size"]), width)}


def features(count: int, width: int, name: str) -> Tensor:
    """Return features in single precision, as a forward pass leaves them."""
    rng = Rng(1, ("bench axes",)).child(name).torch()
    shared = torch.randn(count, _SHARED, generator=Rng(2).torch()) * 0.9 ** torch.arange(_SHARED)
    found = torch.randn(count, width, generator=rng)
    return found.add_(shared @ torch.randn(_SHARED, width, generator=rng))


def measured(site: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one site in this process."""
    torch.set_num_threads(options.threads)
    (d_in, d_out), count = widths()[site], options.inputs
    other = basis(features(count, 512, "other"), options.basis)
    seconds: dict[str, list[tuple[float, float]]] = {"basis": [], "consensus": [], "axes": []}
    own, growth = 0, 0
    for module in range(options.modules):
        before, after = features(count, d_in, f"in {module}"), features(count, d_out, f"out {module}")
        own = before.nbytes + after.nbytes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        held = kilobytes("VmRSS")
        ours = timed(seconds["basis"], lambda before=before: basis(before, options.basis))
        points = timed(seconds["consensus"], lambda ours=ours: consensus([ours, other], options.rank).points)

        def axes(before: Tensor = before, after: Tensor = after, points: Tensor = points) -> None:
            solve(before, points)
            decoder(after, points)

        timed(seconds["axes"], axes)
        growth = max(growth, kilobytes("VmHWM") - held)
    blocks = int(published(SHAPE)["num_hidden_layers"])
    return {
        "seconds": {name: blocks * min(wall for wall, _ in found) for name, found in seconds.items()},
        "cpu_seconds": blocks * sum(min(cpu for _, cpu in found) for found in seconds.values()),
        "memory_bytes": own + growth * 1024,
        "module_bytes": own,
        "site_bytes": blocks * own,
    }


def timed(seconds: list[tuple[float, float]], work: Callable[[], Any]) -> Any:
    began, used = time.perf_counter(), time.process_time()
    result = work()
    seconds.append((time.perf_counter() - began, time.process_time() - used))
    return result


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def kept(found: dict[str, Any]) -> bool:
    return sum(found["seconds"].values()) < SECONDS and found["memory_bytes"] < COPIES * found["site_bytes"]


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a table."""
    settings = result["settings"]
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    columns = ("basis, s", "consensus, s", "axes, s", "sum, s", "cpu, s", "module, MiB", "site, MiB", "memory, MiB")
    lines = [f"{SHAPE}: {told}", "", f"{'site':<13}" + "".join(f"{name:>13}" for name in columns) + f"{'copies':>8}"]
    for site, found in result["sites"].items():
        seconds = [*found["seconds"].values(), sum(found["seconds"].values()), found["cpu_seconds"]]
        sizes = [found[key] / MEGABYTE for key in ("module_bytes", "site_bytes", "memory_bytes")]
        line = f"{site:<13}" + "".join(f"{one:>13.1f}" for one in seconds) + "".join(f"{one:>13.0f}" for one in sizes)
        line += f"{found['memory_bytes'] / found['site_bytes']:>8.2f}"
        lines.append(line + ("" if kept(found) else "  MISSED"))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--inputs", type=int, default=2000, help="public inputs, or words")
    add("--basis", type=int, default=96, help="columns of a basis")
    add("--rank", type=int, default=24, help="common coordinates")
    add("--modules", type=int, default=3, help="modules of each site that are measured")
    add("--threads", type=int, default=2, help="number of torch threads")
    add("--site", choices=list(widths()), help="measure one site in this process and print JSON")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.site:
        print(json.dumps(measured(options.site, options)))
        return 0
    sites = {}
    for site in widths():
        given = [sys.executable, __file__, *sys.argv[1:], "--site", site]
        sites[site] = json.loads(subprocess.run(given, check=True, capture_output=True, text=True).stdout)
    settings = {key: getattr(options, key) for key in ("inputs", "basis", "rank", "modules", "threads")}
    met = all(kept(found) for found in sites.values())
    result = {"settings": settings | {"torch": torch.__version__}, "sites": sites, "targets_met": met}
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
