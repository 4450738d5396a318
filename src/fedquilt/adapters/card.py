"""What lies beside a classifier's adapter for those who take it up: its classes, and a card on how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence

LABELS, CARD = "labels.json", "README.md"

_AUTO = {
    "image-classification": "AutoModelForImageClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
}


def beside(base_name: str, task: str, names: Sequence[str], *, peft: bool) -> dict[str, str]:
    """The text of each file beside the adapter of a classifier: the card and ``labels.json``; none without ``names``.

    ``names`` are the classes in the order of the outputs; ``labels.json`` has them as ``id2label`` and ``label2id``,
    the keys of a config: PEFT's own files have no place for them. ``peft`` says whether PEFT reads the adapter.
    """
    if not names:
        return {}
    named = {
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
    }
    text = json.dumps(named, indent=2, ensure_ascii=False) + "\n"
    return {LABELS: text, CARD: _card(base_name, task, names, peft)}


def _card(base_name: str, task: str, names: Sequence[str], peft: bool) -> str:
    base, auto = json.dumps(base_name, ensure_ascii=False), _AUTO[task]
    lines = [
        "---",
        f"base_model: {base}",
        *(["library_name: peft"] if peft else []),
        "tags: [fedquilt]",
        "---",
        "",
        "# Adapter",
        "",
        f"Trained with fedquilt on `{base_name}` for {task}. Its base may name its outputs otherwise, or not at all;",
        f"the classes are those below, and in `{LABELS}`.",
        "",
        "```python",
        "import json",
        "from pathlib import Path",
        "",
        "from peft import PeftModel" if peft else "from fedquilt import load_adapter",
        f"from transformers import {auto}",
        "",
        'folder = Path(".")  # this one',
        f'labels = json.loads((folder / "{LABELS}").read_text("utf-8"))',
        f"base = {auto}.from_pretrained({base}, num_labels={len(names)}, ignore_mismatched_sizes=True)",
        'base.config.id2label = {int(place): name for place, name in labels["id2label"].items()}',
        'base.config.label2id = labels["label2id"]',
        f"model = {'PeftModel.from_pretrained' if peft else 'load_adapter'}(base, folder)",
        "```",
        "",
        "| output | class |",
        "|---|---|",
        *(f"| {place} | {_cell(name)} |" for place, name in enumerate(names)),
    ]
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())
