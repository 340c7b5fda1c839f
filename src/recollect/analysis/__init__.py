"""Why a detector errs, stage by stage."""

from recollect.analysis.curves import draw_curves, read_curves
from recollect.analysis.errors import Errors, error_breakdown
from recollect.analysis.fading import Fading, fading_analysis
from recollect.analysis.oracle import StageWorth, stage_worth
from recollect.analysis.predictions import Objects, StagePredictions, collect_stages
from recollect.analysis.run_analysis import RunAnalysis, analyse_run, differences, summary_tables

__all__ = [
    "Errors",
    "Fading",
    "Objects",
    "RunAnalysis",
    "StagePredictions",
    "StageWorth",
    "analyse_run",
    "collect_stages",
    "differences",
    "draw_curves",
    "error_breakdown",
    "fading_analysis",
    "read_curves",
    "stage_worth",
    "summary_tables",
]
