"""What losses are divided by: a count, averaged over ranks, never below one."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def mean_over_ranks(count: Tensor | float, like: Tensor, minimum: float = 1.0) -> Tensor:
    """`count` as a scalar of `like`'s dtype and device: its mean over the ranks of a distributed run, held at `minimum`
    or more."""
    total = torch.as_tensor(count, dtype=like.dtype, device=like.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = total.clone()
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=minimum)
