"""How far a student's predictions are from a teacher's, where they count."""

from __future__ import annotations

from torch import Tensor


def disagreement(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float = 1.0) -> Tensor:
    """``t^2 KL(softmax(teacher / t) || softmax(student / t))``, the mean over what is counted; 0 if nothing is.

    ``student`` and ``teacher`` are logits ``(..., classes)`` and ``counted`` is boolean ``(...)``: which rows, or which
    tokens, have a label. Prompts and padding are not counted, so their length changes nothing. The factor ``t^2`` keeps
    gradients as large as they are at temperature 1. No gradient goes to the teacher.

    Raises
    ------
    ValueError
        if the shapes do not fit, or the temperature is not above 0.

    Paper: h2tune, agreement
    """
    if student.shape != teacher.shape or counted.shape != student.shape[:-1]:
        raise ValueError(
            f"logits are {tuple(student.shape)} and {tuple(teacher.shape)}, and "
            f"{tuple(counted.shape)} says what counts; "
            "the first two must be alike, and the third without classes"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    # chosen first: what is not counted may hold anything, and its gradient is then exactly 0
    wanted = (teacher.detach()[counted].float() / temperature).log_softmax(-1)
    given = (student[counted].float() / temperature).log_softmax(-1)
    divergences = (wanted.exp() * (wanted - given)).sum(-1)  # (counted,)
    return temperature**2 * divergences.sum() / max(1, divergences.numel())
