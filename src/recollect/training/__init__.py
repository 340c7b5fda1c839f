"""Training a detector; the only room that knows Lightning."""

from recollect.training.building import build_model
from recollect.training.run import Result, Settings, fit

__all__ = ["Result", "Settings", "build_model", "fit"]
