"""recollect: training object detectors with query recollection, and the toolbox around it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recollect.api import Detector, evaluate, load, train
    from recollect.decoding import Recollection
    from recollect.registry import create_model, list_models
    from recollect.structures import Detections

__version__ = "0.1.0"
__all__ = [
    "Detections",
    "Detector",
    "Recollection",
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "load",
    "train",
]

_HOMES = {
    "Detections": "structures",
    "Detector": "api",
    "Recollection": "decoding",
    "create_model": "registry",
    "evaluate": "api",
    "list_models": "registry",
    "load": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import recollect` and `recollect --help` are quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'recollect' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"recollect.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
