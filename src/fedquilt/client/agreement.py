"""The distillation loss between a student's and a teacher's predictions."""

from __future__ import annotations

from torch import Tensor


def disagreement(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean of ``t^2 KL(softmax(teacher / t) || softmax(student / t))`` over counted positions; 0 if there are none.

    ``student`` and ``teacher`` are logits ``(..., classes)``, and the boolean ``counted`` ``(...)`` says which rows or
    tokens have a label; prompts and padding are not counted. The factor ``t^2`` keeps the magnitude of the gradients at
    that of temperature 1. No gradient flows to the teacher.

    Raises
    ------
    ValueError
        if the shapes do not fit, or the temperature is not above 0.

    Paper: h2tune, agreement
    """
    if student.shape != teacher.shape or counted.shape != student.shape[:-1]:
        raise ValueError(
            f"logits are {tuple(student.shape)} and {tuple(teacher.shape)}, and the mask is {tuple(counted.shape)}; "
            "the logits must have equal shapes, and the mask theirs without classes"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    # selected first: uncounted positions may hold any value, and their gradient is then exactly 0
    wanted = (teacher.detach()[counted].float() / temperature).log_softmax(-1)
    given = (student[counted].float() / temperature).log_softmax(-1)
    divergences = (wanted.exp() * (wanted - given)).sum(-1)  # (counted,)
    return temperature**2 * divergences.sum() / max(1, divergences.numel())
