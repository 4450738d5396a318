"""The foundation model of a run: the settings of the frozen base, which are the section [model] of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from fedquilt.core.settings import Text, Tokens
from fedquilt.core.tasks import TASKS, TaskName

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class Model:
    """The foundation model and its task."""

    name: Text
    """A shipped model (``glyph-vit``, ``glyph-vit-4x32``, ``glyph-vit-8x48``, ``arith-llama``, ``arith-gemma``,
    ``arith-qwen``, ``arith-llama-12x112``), ``tiny:<architecture>`` (random), a local folder, or a name on the Hugging
    Face hub. ``?layers=3`` behind it takes the first three blocks only. Without a network, set the environment variable
    ``FEDQUILT_MODELS`` to a folder with local copies: a hub name ``org/name`` is then read from its folder ``org/name``
    or ``name``, and records and adapters keep the hub name."""
    task: TaskName
    """Task that the model is trained for."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; leave it off unless you trust the author."""
    max_length: Tokens = 128
    """Largest number of tokens of a text; longer ones are truncated."""
    labels: Annotated[tuple[Text, ...], MinLen(2)] | None = None
    """For a classifier base whose own class names (``id2label``) differ from the data's or are only numbers: the data's
    name for each output, in order. If left out, classes are matched by name."""
    dtype: Dtype = "auto"
    """Number type of the frozen base's weights; adapters, a trained head, gradients and the optimiser's state are
    always float32, and so is everything that is sent. ``auto`` is float32, except on CUDA GPUs with bfloat16 hardware:
    there it is bfloat16 if the weights are stored in 16 bits and ``adapter.kind`` is not ``full``. Different types give
    different results, so set it if the devices of a federation differ. ``float16`` is refused: gradients would vanish
    in it without loss scaling."""
    quantization: Quantization = "none"
    """Storage of the weights of the blocks' linear modules, which are most of a model: ``int8`` in 8 bits with a scale
    for each output, ``nf4`` in 4 bits as in QLoRA (needs the extra ``quantization``); passes compute with the
    dequantised weights in ``dtype``. Not for ``adapter.kind = "full"``."""
    attention: Attention = "auto"
    """Implementation of attention: ``eager``, ``sdpa`` (torch's fused one) or ``flash_attention_2`` (the package
    flash-attn, on CUDA GPUs in 16 bits); ``auto`` is transformers' choice, ``sdpa`` where the model has it."""

    def __post_init__(self) -> None:
        """Refuse labels for a model that is no classifier."""
        if self.labels is not None and not TASKS[self.task].has_classes:
            raise ValueError(f"labels are of a classifier, and task is '{self.task}'; leave labels out")
