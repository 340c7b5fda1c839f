"""From a recipe to its detector."""

from __future__ import annotations

from torch import nn

from recollect.decoding import Recollection
from recollect.recipe import Recipe
from recollect.registry import create_model


def build_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The detector of a recipe, in training mode."""
    options = dict(recipe.options)
    if isinstance(options.get("recollection"), dict):  # read back from JSON
        options["recollection"] = Recollection(**options["recollection"])
    return create_model(recipe.model, num_classes=num_classes, **options).train()
