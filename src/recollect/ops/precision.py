"""Which precision arithmetic on boxes and losses runs in."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """float64 stays; anything else becomes float32. For matching, decoding and losses, also under autocast."""
    return values if values.dtype == torch.float64 else values.float()
