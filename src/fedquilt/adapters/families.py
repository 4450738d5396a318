"""Names of the linear modules of a transformer block in each model family; edit this table to add a family.

A module is identified by the end of its path: ``o_proj`` is ``model.layers.3.self_attn.o_proj``. If two ends fit the
same path (``attention.output.dense`` and ``output.dense``), the column further left takes precedence.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """The path ends of a block's linear modules by function; empty if the family has no such module.

    A module with several functions (GPT-2's ``c_attn`` computes query, key and value) is in the first of their columns.
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
    "MLP for tables": Family(up="expand", down="contract"),
}
"""Default targets are looked up in this order; families without an output module do not support mixtures."""


def ends_of(work: str) -> tuple[str, ...]:
    """The path ends of all modules with this function, such as ``"query"``, over all families."""
    return tuple(dict.fromkeys(end for family in FAMILIES.values() if (end := getattr(family, work))))


def ends_in(path: str, *ends: str) -> bool:
    """Whether a module's path equals one of these ends, or ends with a dot and one of them."""
    return any(path == end or path.endswith("." + end) for end in ends)
