"""Query recollection: which earlier stages' queries a decoder stage trains on (SQR, CVPR 2023, arXiv 2212.07593).

Plain decoding hands each stage what the stage before it wrote. Recollection also hands it what *earlier* stages wrote,
as further groups of queries, in training only. The last group of every stage is the plain path, so a detector trained
with recollection predicts exactly as one trained without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from recollect.structures import Prediction, Queries

Stage = Callable[[Queries, Any], tuple[Queries, Prediction]]
"""A decoder stage: any module that maps (queries, memory) to (queries, prediction) and treats groups alike."""


@dataclass(frozen=True)
class Recollection:
    """Stage `s` reads its `reach` latest predecessors' outputs once `s >= start`, else only its direct predecessor's.

    The initial queries count as the output of the stage before the first.

    start: index of the first stage that recollects; the paper's ladder is 1 (all) to 5 (only the sixth).
    reach: 1 is plain decoding, 2 selective recollection (SQR), None dense recollection (DQR).
    repeat_last: run the last stage once more on its own outputs, with the same weights and its own loss (DQRR).
    """

    start: int = 1
    reach: int | None = 2
    repeat_last: bool = False

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ValueError(
                f"Recollection(start={self.start}): the first stage has nothing to recollect, use 1 or more"
            )
        if self.reach is not None and self.reach < 1:
            raise ValueError(f"Recollection(reach={self.reach}): use 1 (plain), 2 (SQR), more, or None (dense)")

    def sources(self, stage: int) -> range:
        """Which outputs stage `stage` reads: 0 is the initial queries, i the output of stage i - 1."""
        reach = 1 if stage < self.start else self.reach
        return range(0 if reach is None else max(0, stage + 1 - reach), stage + 1)

    def groups(self, num_stages: int) -> list[int]:
        """Groups per stage; their sum is the number of stage passes. SQR with six stages: 1 2 3 5 8 13."""
        written = [1]
        for stage in range(num_stages):
            written.append(sum(written[i] for i in self.sources(stage)))
        return written[1:] + ([written[-1]] if self.repeat_last else [])


PLAIN = Recollection(reach=1)


def decode(
    stages: Sequence[Stage],
    queries: Queries,
    memory: Any,
    recollection: Recollection | None = None,
    checkpointing: bool = False,
) -> list[Prediction]:
    """Run the stages one after the other and return what each predicts.

    queries: the initial queries, normally one group. memory: what the stages read of the image, passed through as is.
    recollection: None decodes plainly. checkpointing: keep only the stages' inputs and recompute the rest in the
    backward pass; same losses and gradients, less memory, about a third more time.
    Returns one Prediction per stage, its groups oldest first and the plain path last; with `repeat_last` one more.
    """
    rule = recollection or PLAIN
    outputs = [queries]
    predictions: list[Prediction] = []

    def run(stage: Stage, read: Queries) -> None:
        if checkpointing and torch.is_grad_enabled():
            written, prediction = checkpoint(stage, read, memory, use_reentrant=False)  # type: ignore[misc]
        else:
            written, prediction = stage(read, memory)
        outputs.append(written)
        predictions.append(prediction)

    for index, stage in enumerate(stages):
        run(stage, Queries.cat([outputs[i] for i in rule.sources(index)]))
    if rule.repeat_last:
        run(stages[-1], outputs[-1])
    return predictions
