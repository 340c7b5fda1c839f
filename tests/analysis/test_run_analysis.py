import io
import json

import numpy as np
import pytest
from rich.console import Console
from stage_scenes import predictions, random_scene
from test_oracle import truth_of

from recollect.analysis.run_analysis import analyse_run, differences, summary_tables

NAMES, IDS = ["[a]", "b"], [10, 20]


@pytest.fixture(scope="module")
def two_runs():
    said, things = random_scene(5, images=30)
    plain = analyse_run("plain", predictions(said), truth_of(things), NAMES, IDS, bootstrap=100)
    g = np.random.default_rng(0)
    # the second run is the first with the false positives' scores pressed down at the last stage
    better = [[*image[:-1], [(s * g.uniform(0.2, 0.9), k, b) for s, k, b in image[-1]]] for image in said]
    return plain, analyse_run("sqr", predictions(better), truth_of(things), NAMES, IDS, bootstrap=100)


def test_everything_is_there_and_agrees(two_runs):
    plain, _ = two_runs
    data = plain.to_json()
    json.dumps(data, allow_nan=False)
    assert len(data["stages"]) == 4 and data["images"] == 30
    for stage in range(4):
        measure = data["measures"][f"AP of stage {stage + 1}"]
        assert measure["value"] == data["stages"][stage]["AP"]
        assert measure["low"] < measure["value"] < measure["high"]
        assert plain.worth.stage_ap[stage, 0] == pytest.approx(measure["value"], abs=1e-12)
    assert data["measures"]["oracle AP"]["value"] >= data["stages"][-1]["AP"]
    counts = data["counts"]
    assert data["measures"]["TP fading rate"]["value"] == counts["fading"] / counts["tp"]
    assert sum(data["best_stage"]["false positives"]) > 0
    assert set(data["errors"]["kinds"]) >= {"missed", "background"}


def test_intervals_are_those_of_resampled_images(two_runs):
    plain, _ = two_runs
    measure = plain.measures["FP exacerbation rate"]
    fp, exacerbated = plain.fading.counts[:, 2], plain.fading.counts[:, 3]
    g = np.random.default_rng(7)
    drawn = g.integers(0, 30, (4000, 30))
    by_hand = np.quantile(exacerbated[drawn].sum(1) / fp[drawn].sum(1), [0.025, 0.975])
    assert measure.interval() == pytest.approx(tuple(by_hand), abs=0.02)


def test_differences_are_paired(two_runs):
    plain, sqr = two_runs
    change = differences(plain, sqr)
    same = differences(plain, plain)
    assert all(m.value == 0 and m.interval() == (0, 0) for m in same.values())
    assert change["AP of stage 1"].value == 0  # only the last stage differs
    fading = change["TP fading rate"]
    assert fading.value > 0 and fading.interval()[0] > 0
    assert fading.value == sqr.measures["TP fading rate"].value - plain.measures["TP fading rate"].value


def test_tables_for_the_terminal(two_runs):
    out = io.StringIO()
    for table in summary_tables(two_runs):
        Console(file=out, width=220).print(table)
    text = out.getvalue()
    assert "difference" in text and "oracle AP" in text and "sqr: images" in text and "missed" in text


def test_runs_on_different_images_are_not_compared(two_runs):
    said, things = random_scene(6, images=5)
    other = analyse_run("other", predictions(said), truth_of(things), NAMES, IDS, bootstrap=0)
    with pytest.raises(ValueError, match="different images"):
        differences(two_runs[0], other)
    assert other.to_json()["measures"]["oracle AP"]["low"] is None
