"""Memory: how much is used, and what to turn when it does not suffice."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recollect.recipe import Recipe


class OutOfMemory(RuntimeError):
    """The device has no memory left for a step; the message says what took it and which dials help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so, on any device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def peak_memory(device: torch.device) -> int:
    """Most bytes ever held: on a GPU by torch since its start or `reset_peak`, else by this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def megabytes(amount: int) -> str:
    """For people: 1.2 GB, 340 MB."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def explain_out_of_memory(
    error: BaseException, recipe: Recipe, model: nn.Module, images: Sequence[Tensor], device: torch.device
) -> OutOfMemory:
    """The same error, with what was asked of the device and what to do about it."""
    sizes = sorted({(int(i.shape[-2]), int(i.shape[-1])) for i in images})
    queries = recipe.options.get("num_queries") or getattr(getattr(model, "query_content", None), "num_embeddings", "?")
    rule = getattr(model, "recollection", None)
    stages = getattr(model, "stages", None)
    passes = f"{sum(rule.groups(len(stages)))} stage passes" if rule is not None and stages is not None else "off"
    first = str(error).strip().splitlines()[0]
    return OutOfMemory(
        f"out of memory on {device}: {len(images)} images per pass (batch {recipe.batch}, accumulate "
        f"{recipe.accumulate}), up to {sizes[-1][0]}x{sizes[-1][1]} pixels, {queries} queries, recollection {passes}; "
        f"peak {megabytes(peak_memory(device))}. Three dials help, in this order: --accumulate {recipe.accumulate * 2} "
        f"(same total batch in more, smaller passes); --checkpointing (recomputes the decoder; a third more time) or "
        f"--recollection.start 2 or more (fewer passes); a smaller --size. torch said: {first}"
    )


def reuse_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees, instead of handing it back and faulting it in again.

    Each step allocates the same large blocks; returning them to the system each time costs a CPU training over a tenth
    of its time. Nothing happens where there is no glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
