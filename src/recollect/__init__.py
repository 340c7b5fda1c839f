"""recollect: training object detectors with query recollection, and the toolbox around it."""

import recollect.detectors  # noqa: F401  registers every detector
from recollect.decoding import Recollection
from recollect.registry import create_model, list_models

__version__ = "0.1.0"
__all__ = ["Recollection", "__version__", "create_model", "list_models"]
