"""One file per paper. Importing this package registers every detector."""

from recollect.detectors import (
    adamixer,
    atss,
    cascade_rcnn,
    dab_detr,
    deformable_detr,
    detr,
    dynamic_rcnn,
    fast_rcnn,
    faster_rcnn,
    fcos,
    gfl,
    mask_rcnn,
    retinanet,
    rpn,
    sparse_rcnn,
)

__all__ = [
    "adamixer",
    "atss",
    "cascade_rcnn",
    "dab_detr",
    "deformable_detr",
    "detr",
    "dynamic_rcnn",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "gfl",
    "mask_rcnn",
    "retinanet",
    "rpn",
    "sparse_rcnn",
]
