"""Why a detector errs, stage by stage."""
