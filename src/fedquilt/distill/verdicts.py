"""Which paths end in the right answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.core.server import Questions
from fedquilt.metrics.answers import is_right
from fedquilt.metrics.programs import right_programs


def verdicts(questions: Questions, numbers: Sequence[int], paths: Sequence[str]) -> Tensor | None:
    """Whether each path answers its question as the known answer does, (paths,); None if answers are not known.

    ``numbers`` are those of the questions. Paths of questions without a kind of answer are compared as texts.
    """
    if questions.answers is None:
        return None
    kind, gold = questions.kind or "exact", [questions.answers[number] for number in numbers]
    if kind == "program":
        return torch.tensor(right_programs(list(paths), gold), dtype=torch.bool)
    return torch.tensor([is_right(kind, *pair) for pair in zip(paths, gold, strict=True)], dtype=torch.bool)
