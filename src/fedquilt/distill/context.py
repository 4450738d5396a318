"""The context of a sample for a pair of teacher and student: what the student knows of it before it learns."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.distill.contrast import Pair
from fedquilt.distill.paths import Likelihood, Reading

SCALARS = 6
"""Numbers of a context besides the student's states."""

_LONG = 20
"""Number of tokens of a path that counts as 1."""


def contexts(taught: Reading, own: Likelihood, teacher: Pair, same: Tensor) -> Tensor:
    """The context of each sample, (samples, 2 width + 6), float32.

    The student's mean states over the teacher's path and over the question; the mean log-probabilities per token of
    the teacher's and of the student's path under the student, then under the teacher; the number of the teacher path's
    tokens over 20; and whether both paths are the same.

    Parameters
    ----------
    taught
        What the student makes of the teacher's paths.
    own
        The likelihoods of the student's own paths under the student.
    teacher
        The likelihoods of the teacher's and of the student's paths under the teacher.
    same
        Whether both paths are the same, (samples,).

    Paper: lada, context
    """
    scalars = [
        taught.likelihood.mean,
        own.mean,
        teacher.preferred.mean,
        teacher.other.mean,
        taught.likelihood.tokens / _LONG,
        same,
    ]
    columns = torch.stack([scalar.detach().float().cpu() for scalar in scalars], 1)  # (samples, 6)
    return torch.cat([taught.path.float(), taught.prompt.float(), columns], 1)


def num_features(width: int) -> int:
    """The number of features of a context for a student whose states have this width."""
    return 2 * width + SCALARS
