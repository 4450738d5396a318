"""Evaluation of a model on a client's rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedquilt.adapters.lora.dora import unchanging
from fedquilt.client.generation import Answering, Asked, asked, right
from fedquilt.client.workbench import Batch, Workbench


def evaluation(
    bench: Workbench,
    columns: Batch,
    params: Mapping[str, Tensor],
    *,
    batch_size: int = 256,
    answering: Answering | None = None,
) -> dict[str, float]:
    """Evaluate a model: ``loss`` and ``accuracy`` over all labels of the rows, and ``examples``, the number of rows.

    Parameters
    ----------
    bench, columns, params
        The workbench, the rows, and the model's tensors.
    batch_size
        Rows of a forward pass.
    answering
        How answers are generated and compared: the accuracy is then the share of rows with a right answer. With None, a
        language model's accuracy is over its labelled tokens.
    """
    bench.load(params)
    num_rows = len(columns["labels"])
    loss_sum, correct, seen = 0.0, 0, 0
    to_answer: list[Asked] = []
    with torch.no_grad(), unchanging(bench.adapters.values()):
        for first in range(0, num_rows, batch_size):
            batch = {name: column[first : first + batch_size] for name, column in columns.items()}
            logits, labels = bench.forward(batch)
            loss_sum += float(bench.scoring.loss(logits, labels).sum())
            seen += bench.scoring.num_labels(labels)
            if answering is None:
                correct += bench.scoring.num_correct(logits, labels)
            else:
                to_answer += asked(bench, batch, logits, answering)
        if answering is not None:  # all together, so that prompts of similar lengths share a batch
            correct = num_rows - len(to_answer) + sum(right(bench, to_answer, answering, batch_size))
    num_answers = max(1, seen if answering is None else num_rows)
    return {"loss": loss_sum / max(1, seen), "accuracy": correct / num_answers, "examples": float(num_rows)}
