"""One file per paper. Importing this package registers every detector."""

from recollect.detectors import adamixer, deformable_detr

__all__ = ["adamixer", "deformable_detr"]
