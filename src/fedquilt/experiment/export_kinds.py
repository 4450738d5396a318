"""What ``fedquilt export --to`` writes: an adapter, a whole model, only a model card, or adapters for vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId
from fedquilt.experiment.evaluate import described
from fedquilt.experiment.export import adapter_folder, export, party_of
from fedquilt.experiment.export_card import carded
from fedquilt.experiment.export_vllm import COMMAND, export_vllm
from fedquilt.experiment.merged_model import export_merged
from fedquilt.record import read_config, read_partition

To = Literal["peft", "merged", "card", "vllm"]


def exported(
    run: Path,
    out: Path,
    to: To = "peft",
    client: ClientId | None = None,
    group: str | None = None,
    *,
    server: bool = False,
) -> str:
    """Write an export of this kind; returns in words what was written.

    Parameters
    ----------
    run, out
        The run's folder, and the folder to write.
    to
        The adapter in PEFT's format, or its own (``peft``), the whole model (``merged``), or only the model card
        (``card``); a card is written beside the first two. All adapters for vLLM (``vllm``).
    client, group, server
        Whose model, as for ``export.export``.

    Raises
    ------
    FedquiltError
        as ``export``, ``export_merged`` and ``export_vllm`` do.
    """
    if to == "vllm":
        if server:
            raise RunError("--to vllm: serves the adapters of clients and groups; leave --server out")
        served = export_vllm(run, out, client, group)
        return f"wrote {served.folder}; serve it with the command in {served.folder / COMMAND}:\n{served.command}"
    if read_config(run).get("parties"):
        client, group, server = party_of(run, read_partition(run)["clients"], client, group, server=server)
    adapter = adapter_folder(run, client, group, server=server)
    if to == "card":
        return f"wrote {carded(run, out, adapter, client, group, server=server)}"
    write = export_merged if to == "merged" else export
    made = write(run, out, client, group, server=server)
    carded(run, out, adapter, client, group, server=server, merged=to == "merged")
    described(run, out, client, group, adapter, server=server)
    return f"wrote {made}"
