"""Who answers for which object."""

from recollect.matching.hungarian import HungarianMatcher, Matches, NonFinitePrediction

__all__ = ["HungarianMatcher", "Matches", "NonFinitePrediction"]
