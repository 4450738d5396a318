"""Numbers that agree but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_near(left: Tensor, right: Tensor, tolerance: float = 1e-10) -> None:
    """Two tensors agree to this tolerance, absolute and relative."""
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
