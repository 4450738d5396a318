"""A model card of an exported model: the Hub's metadata, and what a reader must know before using it.

Everything in it is read from the run folder. A license is left to those whose data it was trained on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.core.enclosed import is_enclosed
from fedquilt.core.markdown import code, plain
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import IN_MEMORY
from fedquilt.report.columns import human_bytes
from fedquilt.report.parties import is_vertical
from fedquilt.report.run_file import run_file
from fedquilt.report.runs import Run, all_bytes, as_number, client_names, client_table, privacy
from fedquilt.report.scores import final_evaluation, final_score, main_metric

_PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForTabularClassification": "tabular-classification",
}
"""The Hub's names of what models of these classes are for; a task that is added needs none."""
_MOST = 50  # clients, and labels of each, that a card lists


def model_card(run: Run, whose: str, usage: str, *, base: str, task: str, library: str) -> str:
    """Return the README.md of a model of this run.

    Parameters
    ----------
    run : the run.
    whose : whose model it is, as in ``the global model``.
    usage : Markdown that shows how it is loaded, and its classes.
    base : the name of the base model.
    task : what it is fine-tuned for.
    library : the library that loads it, ``"peft"``, ``"transformers"`` or ``"fedquilt"``.
    """
    metric = main_metric(run)
    sections = {
        "Use": usage.strip(),
        "Data": _data(run),
        "Training": _training(run, base, task),
        "Privacy": _privacy(run),
        "Results": _results(run, metric),
        "Reproduce": _reproduced(run),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"{_metadata(run, base, task, library, metric)}\n# {plain(f'{run.name}: {whose}')}\n\n{body}\n"


def names_of_clients(run: Run) -> dict[int, str]:
    """Return a name for each client: that in the data, or the label of a group with one client, else its number."""
    named, table = client_names(run), client_table(run)
    groups = [str(one.get("group") or "") for one in table]
    return {
        id: group if name == str(id) and group and groups.count(group) == 1 else name
        for (id, name), group in zip(named.items(), groups, strict=True)
    }


def _metadata(run: Run, base: str, task: str, library: str, metric: str) -> str:
    # without the configuration and the split of hub:owner/name:configuration@split
    found = [re.match("hub:([^:@]+)", source) for source in _sources(run)]
    hub = list(dict.fromkeys(one[1] for one in found if one))
    tags = ["fedquilt", "federated-learning", run.method, *(["lora"] if library == "peft" else [])]
    loadable = not base.startswith(IN_MEMORY) and not is_enclosed(base)
    pipeline = _PIPELINES.get(TASKS[task].auto_class) if task in TASKS else None
    lines = [
        "---",
        *([f"base_model: {json.dumps(base, ensure_ascii=False)}"] if loadable else []),
        *([] if library == "fedquilt" else [f"library_name: {library}"]),
        *([f"pipeline_tag: {pipeline}"] if pipeline else []),
        f"tags: {json.dumps(tags)}",
        *([f"datasets: {json.dumps(hub)}"] if hub else []),
        f"metrics: {json.dumps([metric] if metric == 'accuracy' else [])}",
        "# license: yours to choose, with those whose data this was trained on",
        "---",
        "",
    ]
    return "\n".join(lines)


def _sources(run: Run) -> list[str]:
    parts = [run.config, *(run.config.get("groups") or ()), *(run.config.get("parties") or ())]
    found = [(part.get("data") or {}).get("source") for part in parts]
    return list(dict.fromkeys(str(source) for source in found if source))


def _data(run: Run) -> str:
    table, names = client_table(run), names_of_clients(run)
    total = sum(int(one.get("examples") or 0) for one in table)
    scheme = (run.config.get("partition") or {}).get("scheme")
    first = (
        f"{total:,} training rows of {len(table)} clients, from {', '.join(map(code, _sources(run)))}; "
        f"partition: {code(str(scheme))}."
    )
    labelled = any(one.get("labels") for one in table)
    head = ["client", "rows", *(["labels"] if labelled else [])]
    rows = [
        [names[int(one["id"])], f"{int(one.get('examples') or 0):,}", *([_labels(one)] if labelled else [])]
        for one in table[:_MOST]
    ]
    return f"{first}\n\n{_table(head, rows)}{_more(len(table))}"


def _labels(client: Mapping[str, Any]) -> str:
    counts = client.get("labels") or {}
    shown = [f"{name}: {count}" for name, count in [*counts.items()][:_MOST]]
    return ", ".join(shown) + (", ..." if len(counts) > _MOST else "")


def _training(run: Run, base: str, task: str) -> str:
    config, (up, down) = run.config, all_bytes(run)
    adapter = config.get("adapter") or {}
    settings = {key: value for key, value in (config.get("method") or {}).items() if key != "name"}
    lines = [
        f"- Base model: {code(base)}, for {task}",
        f"- Method: {code(run.method)}" + (f" with {code(json.dumps(settings))}" if settings else ""),
        f"- Rounds: {len(run.rounds)} of {config.get('rounds')}; seed {run.seed}",
        f"- Adapter: `{adapter.get('kind')}`" + (f" of rank {adapter['rank']}" if adapter.get("rank") else ""),
        f"- Sent by clients: {human_bytes(up)}; received: {human_bytes(down)}",
    ]
    versions = run.environment.get("versions") or {}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("fedquilt", "torch", "transformers") if name in versions)
    return "\n".join([*lines, *([f"- Software: {shown}"] if shown else [])])


def _privacy(run: Run) -> str:
    spent, section = privacy(run), run.config.get("privacy") or {}
    if spent is None:
        return (
            "Trained without differential privacy: an adapter can leak the rows that it was trained on. "
            f"{_what_left(run)}"
        )
    epsilon = math.inf if spent["epsilon"] is None else float(spent["epsilon"])
    delta = spent.get("delta", section.get("delta"))
    return (
        f'Differential privacy at the level of clients, `privacy.mode = "{section.get("mode")}"`: '
        f"epsilon {epsilon:.4g} at delta {delta:g}."
    )


def _what_left(run: Run) -> str:
    """What clients sent, in words that hold for every method of the kind."""
    page = f"the page of `{run.method}` in fedquilt's documentation says what"
    if is_vertical(run):
        return f"What tells of single rows left the parties, such as embeddings; {page}."
    if run.config.get("server"):
        return f"Texts or predictions left the clients, besides weights; {page}."
    return "Weights and a few numbers left the clients, and none of their rows."


def _results(run: Run, metric: str) -> str:
    scores = final_evaluation(run)
    if not scores:
        return "The run had not finished when this was exported, so the model was not scored."
    clients = {int(id): as_number(own[metric]) for id, own in (scores.get("clients") or {}).items() if metric in own}
    others = {f"group {label}, on its common test rows": own for label, own in (scores.get("groups") or {}).items()}
    others["the server's model, on its own test rows"] = scores.get("server")
    overall = {
        "on the common test rows": final_score(run, metric, "global"),
        **{what: as_number(own[metric]) for what, own in others.items() if own and metric in own},
        "mean of the clients, on their own test rows": final_score(run, metric, "clients-mean"),
        "worst client": final_score(run, metric, "clients-worst"),
    }
    text = _table(
        ["", metric], [[what, _number(score, metric)] for what, score in overall.items() if score is not None]
    )
    if clients:
        names = names_of_clients(run)
        own = [[names.get(id, str(id)), _number(score, metric)] for id, score in [*clients.items()][:_MOST]]
        text += f"\n\n{_table(['client', metric], own)}{_more(len(clients))}"
    return text


def _reproduced(run: Run) -> str:
    return f"`fedquilt run run.toml`, with this `run.toml`:\n\n```toml\n{run_file(run.config)}```"


def _number(value: float, metric: str) -> str:
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"


def _more(count: int) -> str:
    return f"\n\nand {count - _MOST} more" if count > _MOST else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)
