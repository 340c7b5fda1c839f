"""Loss functions, and the criteria that put them together."""

from recollect.losses.classification import FocalClassification, SoftmaxClassification
from recollect.losses.set_criterion import SetCriterion

__all__ = ["FocalClassification", "SetCriterion", "SoftmaxClassification"]
