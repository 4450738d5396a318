"""What the linear modules of a transformer block are called in which model family: the one table to edit for a new one.

A module is known by the end of its path: ``o_proj`` is ``model.layers.3.self_attn.o_proj``. Where two ends fit one
path (``attention.output.dense`` and ``output.dense``), the column further left counts.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """The ends of the paths of a block's linear modules, by their work; empty where a family has no such module.

    A module that computes several (GPT-2's ``c_attn`` makes query, key and value) stands in the first column of them.
    """

    query: str = ""
    key: str = ""
    value: str = ""
    output: str = ""
    gate: str = ""
    up: str = ""
    down: str = ""


FAMILIES: dict[str, Family] = {
    "ViT": Family("q_proj", "k_proj", "v_proj", "o_proj", "", "fc1", "fc2"),
    "BERT": Family("query", "key", "value", "attention.output.dense", "", "intermediate.dense", "output.dense"),
    "DistilBERT": Family("q_lin", "k_lin", "v_lin", "out_lin", "", "lin1", "lin2"),
    "LLaMA": Family("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "Gemma, Gemma 2 and Gemma 3": Family("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "Qwen2": Family("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "Qwen3": Family("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "GPT-2": Family("c_attn", output="attn.c_proj", up="c_fc", down="mlp.c_proj"),
    "GPT-NeoX, BLOOM and Falcon": Family("query_key_value"),
    "Phi-3 and CodeGen": Family("qkv_proj"),
    "BLIP and Hiera": Family("qkv"),
    "ModernBERT, MPT and DBRX": Family("Wqkv"),
    "DeBERTa-v2": Family("query_proj", value="value_proj"),
    "CvT": Family("projection_query", value="projection_value"),
    "DeepSeek-V3": Family("q_b_proj", value="kv_b_proj"),
    "DeepSeek-V2-Lite": Family("q_proj", value="kv_b_proj"),
    "AXK2": Family("q_a_proj", value="kv_b_proj"),
    "T5 and MPNet": Family("q", value="v"),
    "CTRL": Family("Wq", value="Wv"),
    "DeBERTa": Family("in_proj"),
}
"""In this order a model's default targets are looked for; rows without an output module have no mixtures."""


def ends_of(work: str) -> tuple[str, ...]:
    """The ends of the paths of all modules that do this work in some family, such as ``"query"``."""
    return tuple(dict.fromkeys(end for family in FAMILIES.values() if (end := getattr(family, work))))


def ends_in(path: str, *ends: str) -> bool:
    """Whether a module's path is one of these, or ends with the dotted parts of one."""
    return any(path == end or path.endswith("." + end) for end in ends)
