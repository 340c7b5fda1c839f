"""Where the queries of each decoder stage read the image: AdaMixer's 3-D points, deformable attention's points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from recollect.detectors.adamixer import AdaMixerStage
from recollect.layers.deformable import DeformableAttention


@contextmanager
def recorded_points(model: Any) -> Iterator[list[Tensor]]:
    """Inside, every pass of the model leaves its decoder stages' sampling points in the list, in order of the stages.

    [B, Q, P, 2] per stage: x, y in fractions of the unpadded image; all heads, groups and levels of a query in one P.
    Empty for detectors whose stages do not sample points (DETR reads everywhere). Cleared by the next pass.
    """
    readers = [
        [m for m in stage.modules() if isinstance(m, AdaMixerStage | DeformableAttention)] for stage in model.stages
    ]
    points: list[Tensor] = []
    sizes: list[Tensor] = []
    collate = model.collate

    def collated(*args: Any, **options: Any) -> Any:
        batch = collate(*args, **options)
        points.clear()
        sizes[:] = [batch.whwh()[:, :2]]
        return batch

    def watch(reader: nn.Module) -> None:
        place = reader.sampling_points

        def placed(*args: Any) -> Any:
            found = place(*args)  # type: ignore[operator]
            if isinstance(reader, DeformableAttention):
                fractions = found / args[2].valid[:, None, None, :, None, :2]
            else:
                fractions = found[..., :2] / sizes[0].to(found)[:, None, None, None]
            points.append(fractions.flatten(2, -2))
            return found

        object.__setattr__(reader, "sampling_points", placed)

    watched = [reader for stage in readers for reader in stage]
    model.collate = collated
    for reader in watched:
        watch(reader)
    try:
        yield points
    finally:
        del model.collate
        for reader in watched:
            object.__delattr__(reader, "sampling_points")
