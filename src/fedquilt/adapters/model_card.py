"""Files beside an exported adapter: the names of the classes, and a model card that shows how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fedquilt.core.enclosed import BASE, is_enclosed
from fedquilt.core.markdown import plain
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import IN_MEMORY

LABELS, CARD = "labels.json", "README.md"


def is_own(file: Path) -> bool:
    """Whether this is a README.md of somebody's own, and no card of fedquilt's, which has it among its tags.

    A card that was given a license is its owner's.
    """
    if not file.is_file():
        return False
    before, _, rest = file.read_text("utf-8", "replace").partition("---\n")
    metadata = rest.partition("\n---")[0]
    return bool(before) or "fedquilt" not in metadata or re.search(r"^license\w*:", metadata, re.M) is not None


def beside(
    base_name: str,
    task: str,
    names: Sequence[str],
    *,
    peft: bool,
    revision: str | None = None,
    layers: int | None = None,
) -> dict[str, str]:
    """The texts of the files beside an adapter, by file name.

    A classifier gets the card and ``labels.json``; a language model gets the card if its base must be cut to its first
    blocks, or comes with the exported adapter because nobody could load it by its name. ``labels.json`` holds the
    classes as ``id2label`` and ``label2id``, as a model's config does, because PEFT's files cannot hold them.

    Parameters
    ----------
    base_name : the pretrained model, as it is loaded.
    task : what it is fine-tuned for, such as ``"causal-lm"``.
    names : the classes in the order of the outputs; empty for a language model.
    peft : whether PEFT can read the adapter.
    revision : the revision of the model on the hub, if one is named.
    layers : the number of first blocks that the base is cut to; None for all.
    """
    if is_enclosed(base_name):
        layers = None  # the base beside the adapter has no others
    text = card(base_name, task, names, peft=peft, revision=revision, layers=layers)
    if not names:
        return {CARD: text} if layers is not None or is_enclosed(base_name) else {}
    named = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    return {LABELS: json.dumps(named, indent=2, ensure_ascii=False) + "\n", CARD: text}


def card(
    base_name: str,
    task: str,
    names: Sequence[str],
    *,
    peft: bool,
    revision: str | None = None,
    layers: int | None = None,
) -> str:
    """The card that shows how an adapter is loaded; arguments as for ``beside``.

    Parameters
    ----------
    base_name, task, names, peft, revision, layers : as for ``beside``.
    """
    options = f", revision={json.dumps(revision)}" if revision else ""
    if is_enclosed(base_name):
        layers = None  # as for `beside`
    return _card(base_name, task, names, peft, options, layers)


def _cut(base: str, options: str, layers: int) -> list[str]:
    """Lines of Python that make the config of a model with only its first blocks."""
    return [
        f"config = AutoConfig.from_pretrained({base}{options})",
        f"config.num_hidden_layers = {layers}",
        'if getattr(config, "layer_types", None):',
        f"    config.layer_types = config.layer_types[:{layers}]",
    ]


def _card(base_name: str, task: str, names: Sequence[str], peft: bool, options: str, layers: int | None) -> str:
    if base_name.startswith(IN_MEMORY):
        return _card_of_object(base_name, task, names)
    if TASKS[task].reads == "table":
        return _card_of_table(base_name, task, names)
    name, auto = json.dumps(base_name, ensure_ascii=False), TASKS[task].auto_class
    base = f'folder / "{BASE}"' if is_enclosed(base_name) else name
    sized = f", num_labels={len(names)}" if names else ""
    loose = ", ignore_mismatched_sizes=True" if names else ""
    given = f"{options}{sized}{loose}" if layers is None else f"{options}, config=config{loose}"
    lines = [
        "---",
        f"base_model: {name}",
        *(["library_name: peft"] if peft else []),
        "tags: [fedquilt]",
        "---",
        "",
        "# Adapter",
        "",
        f"Trained with fedquilt on `{base_name}` for {task}.",
        *([f"Only the first {layers} blocks of the base were used."] if layers is not None else []),
        *([f"The base is in `{BASE}`, which `fedquilt export RUN --out FOLDER` writes."] if base != name else []),
        *(
            [
                "Its base may name its outputs otherwise, or not at all;",
                f"the classes are those below, and in `{LABELS}`.",
            ]
            if names
            else []
        ),
        "",
        "```python",
        *(["import json"] if names else []),
        "from pathlib import Path",
        "",
        "from peft import PeftModel" if peft else "from fedquilt import load_adapter",
        f"from transformers import {auto}" if layers is None else f"from transformers import AutoConfig, {auto}",
        "",
        'folder = Path(".")  # this one',
        *([] if layers is None else _cut(base, options + sized, layers)),
        *([f'labels = json.loads((folder / "{LABELS}").read_text("utf-8"))'] if names else []),
        f"base = {auto}.from_pretrained({base}{given})",
        *(
            [
                'base.config.id2label = {int(place): name for place, name in labels["id2label"].items()}',
                'base.config.label2id = labels["label2id"]',
            ]
            if names
            else []
        ),
        f"model = {'PeftModel.from_pretrained' if peft else 'load_adapter'}(base, folder)",
        "```",
    ]
    return "\n".join([*lines, *_listed(names)]) + "\n"


def _card_of_object(base_name: str, task: str, names: Sequence[str]) -> str:
    """The card where the base was an object of a Python program, which has no name to load it by."""
    lines = [
        "---",
        "tags: [fedquilt]",
        "---",
        "",
        "# Adapter",
        "",
        f"Trained with fedquilt for {task} on a model in the memory of a Python program, noted as `{base_name}`.",
        "With that model, as it was before, in `base`:",
        "",
        "```python",
        "from fedquilt import load_adapter",
        "",
        'model = load_adapter(base, ".")  # this folder',
        "```",
    ]
    return "\n".join([*lines, *_listed(names)]) + "\n"


def _card_of_table(base_name: str, task: str, names: Sequence[str]) -> str:
    """The card of a model of tables, whose base may have random weights, and which has its own preprocessing."""
    lines = [
        "---",
        "tags: [fedquilt]",
        "---",
        "",
        "# Adapter",
        "",
        f"Trained with fedquilt for {task} on `{base_name}`.",
        "The weights of an `mlp` follow from the run's seed: `fedquilt export RUN --merged` writes the whole model.",
        "How columns become its inputs is in `preprocessor_config.json`:",
        "",
        "```python",
        "import fedquilt",
        "",
        'inputs = fedquilt.features(".", "rows.csv")  # this folder; rows may be a data frame too',
        "```",
    ]
    return "\n".join([*lines, *_listed(names)]) + "\n"


def _listed(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        "",
        "| output | class |",
        "|---|---|",
        *(f"| {index} | {plain(name)} |" for index, name in enumerate(names)),
    ]
