"""The examples run as they stand, on a few of the demo's scenes, and stay short enough to read."""

import importlib.util
import math
from pathlib import Path

import pytest

from recollect.data.digits import make_digit_scenes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_digit_scenes(tmp_path_factory.mktemp("digits"), train=8, val=3, size=64)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_fits_on_a_page(path):
    assert len(path.read_text().splitlines()) <= 60


def test_own_decoder(scenes):
    metrics, predictions = load("own_decoder").main(scenes, epochs=1, batch=4)
    assert len(metrics.stages) == 4
    assert predictions.scores.shape == (3, 4, 20)


def test_own_decoder_recollects(scenes):
    example = load("own_decoder")
    from recollect import Recollection
    from recollect.data import open_dataset

    image, target = open_dataset(scenes, "train")[0]
    model = example.OwnDetector(10, Recollection()).train()
    groups = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, read, _: groups.append(read[0].content.shape[1]))
    losses = model([image], [target])
    assert groups == [1, 2, 3, 5]
    assert {key for key in losses if key.endswith("class")} == {f"stage{s}_class" for s in range(4)}


def test_plain_loop(scenes, capsys):
    metrics = load("plain_loop").main(scenes, steps=2, batch=4)
    assert "step 2: loss" in capsys.readouterr().out
    assert len(metrics.stages) == 4 and not math.isnan(metrics.stats["AP"])
