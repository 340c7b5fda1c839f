"""One file per paper. Importing this package registers every detector."""

from recollect.detectors import adamixer, atss, deformable_detr, fcos, gfl, retinanet

__all__ = ["adamixer", "atss", "deformable_detr", "fcos", "gfl", "retinanet"]
