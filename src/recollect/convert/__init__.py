"""Checkpoints of other projects, read into our detectors and written again under their names.

One name table per family and source (`adamixer.py`, `detr.py`, ...), read in both directions by `rules.py`.
"""

from recollect.convert.backbones import convert_backbone, is_backbone
from recollect.convert.conversion import Conversion, convert, to_reference, write_reference
from recollect.convert.rules import ConversionError

__all__ = [
    "Conversion",
    "ConversionError",
    "convert",
    "convert_backbone",
    "is_backbone",
    "to_reference",
    "write_reference",
]
