"""A residual MLP for rows of tables, as a model of transformers: saved, loaded and adapted like any other."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

_EXPANSION = 2  # the width inside a block, relative to that between blocks


class MlpConfig(transformers.PreTrainedConfig):
    """The shape of an MLP; ``num_labels`` is the number of outputs, be they classes or the width of an embedding.

    Parameters
    ----------
    num_features
        The number of inputs.
    num_hidden_layers, hidden_size
        The number of blocks, and the width between them.
    initializer_range
        The standard deviation of the initial weights; one over the square root of the width if None.
    options
        Those of every model of transformers.
    """

    model_type = "mlp"

    def __init__(
        self,
        num_features: int = 1,
        num_hidden_layers: int = 2,
        hidden_size: int = 64,
        initializer_range: float | None = None,
        **options: Any,
    ) -> None:
        self.num_features = num_features
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.initializer_range = hidden_size**-0.5 if initializer_range is None else initializer_range
        super().__init__(**options)


class Block(nn.Module):
    """``x + contract(gelu(expand(norm(x))))``: rows (..., width) to rows of the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _EXPANSION * width)
        self.contract = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The rows after this block, (rows, width)."""
        moved: Tensor = x + self.contract(nn.functional.gelu(self.expand(self.norm(x))))
        return moved


class Body(nn.Module):
    """Features (rows, ``num_features``) to representations (rows, ``hidden_size``), through the blocks."""

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.num_features, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """The representations of the rows, (rows, ``hidden_size``)."""
        x = self.embed(features)
        for layer in self.layers:
            x = layer(x)
        made: Tensor = self.norm(x)
        return made


class Mlp(transformers.PreTrainedModel):
    """A body of residual blocks with a linear head: a classifier, or an encoder whose outputs are an embedding."""

    config_class = MlpConfig
    base_model_prefix = "mlp"
    main_input_name = "features"
    supports_gradient_checkpointing = True

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        self.mlp = Body(config)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor) -> SequenceClassifierOutput:
        """An object with ``logits`` (rows, outputs) for features (rows, ``num_features``)."""
        return SequenceClassifierOutput(logits=self.classifier(self.mlp(features)))


class AutoModelForTabularClassification:
    """Makes and loads models of tables, with the interface of the classes of transformers for other tasks."""

    _model_mapping = {MlpConfig: Mlp}  # noqa: RUF012 - the name and type that transformers gives it

    @staticmethod
    def from_config(config: MlpConfig, trust_remote_code: bool = False) -> Mlp:
        """A model of this config with random weights."""
        made: Mlp = Mlp._from_config(config)  # type: ignore[no-untyped-call]
        return made

    from_pretrained = Mlp.from_pretrained


transformers.AutoConfig.register(MlpConfig.model_type, MlpConfig)
