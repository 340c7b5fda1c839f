"""Every name table against full-size names and shapes of its project, both ways, each name exactly once."""

import json
from functools import partial

import pytest
import torch

from convert import skeletons
from recollect.convert.checkpoint import Checkpoint
from recollect.convert.conversion import find_table
from recollect.convert.rules import read_options, to_ours, to_theirs
from recollect.registry import create_model, model_entry

VARIANTS = {  # (refine, two_stage) and our name
    "plain": (False, False, "deformable_detr_r50"),
    "refine": (True, False, "deformable_detr_r50_refine"),
    "two-stage": (True, True, "deformable_detr_r50_two_stage"),
}
SKELETONS = {
    "detr": (skeletons.detr, "detr_r50"),
    "mmdet3 detr": (skeletons.mmdet3_detr, "detr_r50"),
    "dab-detr": (skeletons.dab_detr, "dab_detr_r50"),
    "detrex": (skeletons.detrex_dab_detr, "sqr_dab_detr_r50"),
    **{f"deformable {v}": (partial(skeletons.deformable_detr, r, t), model) for v, (r, t, model) in VARIANTS.items()},
    **{
        f"mmdet3 deformable {v}": (partial(skeletons.mmdet3_deformable_detr, r, t), model)
        for v, (r, t, model) in VARIANTS.items()
    },
}


def both_ways(state, model, **options):
    """Every entry consumed exactly once with its shape, nothing missing, nothing left over, and back again."""
    entry = model_entry(model)
    table = find_table(entry, Checkpoint("a file", state, None, ()))
    chosen = {**table.given, **read_options(table, state), **options}
    with torch.device("meta"):
        built = create_model(model, **{name: value for name, value in chosen.items() if name in entry.options})
    ours = built.state_dict(keep_vars=True)
    converted = to_ours(table, state, ours)
    assert list(converted.state) == list(ours)
    back = to_theirs(table, converted.state, converted.unused)
    assert {name: value.shape for name, value in back.items()} == {name: v.shape for name, v in state.items()}
    assert table.variant(ours)
    return table, chosen, ours


@pytest.mark.parametrize("name", SKELETONS)
def test_names_of_other_projects(name):
    skeleton, model = SKELETONS[name]
    with torch.device("meta"):
        theirs = skeleton()
    table, options, _ = both_ways(theirs.state_dict(), model)
    assert options["num_stages"] == 6
    assert options["num_classes"] == (91 if table.source in ("detr", "deformable-detr", "dab-detr") else 80)


# --- The names and shapes of the full-size reference detectors, read off the reference itself


def reference_model(name):
    """Which detector of ours a configuration of the reference is."""
    if name.startswith("adamixer"):
        depth = "r101" if "r101" in name else "r50"
        return f"sqr_adamixer_{depth}_7stages" if depth == "r101" else f"{'sqr_' if 'SQR' in name else ''}adamixer_r50"
    if name.startswith("detr"):
        return "detr_r50"
    variant = "_two_stage" if "twostage" in name else "_refine" if "refine" in name else ""
    return f"{'sqr_' if 'SQR' in name else ''}deformable_detr_r50{variant}"


def as_meta(entries):
    def shape(entry):
        return entry["shape"] if isinstance(entry, dict) else entry

    return {name: torch.empty(shape(entry), device="meta") for name, entry in entries.items()}


@pytest.mark.slow
def test_full_checkpoints(shared):
    """The 12 detectors of the reference: parameters, tied heads, every key."""
    references = json.loads((shared / "parity" / "full_checkpoints.json").read_text())
    assert references
    for name, reference in references.items():
        model = reference_model(name)
        state = as_meta(reference["state_dict"])
        assert len(state) == reference["n_keys"]
        table, _, ours = both_ways(state, model)
        assert _tied_names(table, ours) == {frozenset(group) for group in reference["tied"]}, name
        with torch.device("meta"):
            options = read_options(table, state)
            built = create_model(model, **options)
        own = sum(p.numel() for p in built.parameters())
        unused = sum(state[n].numel() for n in to_ours(table, state, ours).unused)
        assert own + unused == reference["n_params"], name


def _tied_names(table, ours):
    """Groups of their names that are one tensor of ours."""
    groups = {}
    for name, value in to_theirs(table, ours).items():
        groups.setdefault(id(value), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def test_sparse_rcnn_names(shared):
    methods = json.loads((shared / "parity" / "methods" / "method_checkpoints.json").read_text())
    config = methods["configs"]["sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco"]
    body = methods[config["backbone"]]
    body = body.get("state_dict", body)
    state = as_meta({**{f"backbone.{n.removeprefix('backbone.')}": e for n, e in body.items()}, **config["state_dict"]})
    assert len(state) == config["n_keys"]
    both_ways(state, "sparse_rcnn_r50_100")
