"""One file per paper. Importing this package registers every detector."""

from recollect.detectors import adamixer

__all__ = ["adamixer"]
