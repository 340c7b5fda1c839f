"""`recollect analyze` from weights on disk to report and numbers."""

import json
import re

import pytest
import torch

import recollect
from recollect.analysis.predictions import collect_stages
from recollect.cli import main
from recollect.convert.weights import save_weights
from recollect.data import evaluation_loader, evaluation_transform, open_dataset
from recollect.data.digits import make_digit_scenes
from recollect.evaluation import evaluate_model
from recollect.registry import model_entry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze")
    make_digit_scenes(folder / "data", train=1, val=3, seed=0)
    data = open_dataset(folder / "data", "val")
    for name in ("adamixer_tiny", "detr_tiny"):
        torch.manual_seed(0)
        model = recollect.create_model(name, num_classes=len(data.names))
        (folder / name).mkdir()
        card = {"model": name, "options": {}, "names": data.names, "category_ids": data.category_ids,
                "recipe": model_entry(name).recipe().to_json()}  # fmt: skip
        save_weights(folder / name / "weights.safetensors", model, card)
    (folder / "adamixer_tiny/metrics.csv").write_text("step,loss,AP\n10,9,0.1\n20,8,0.2\n")
    return folder


def test_two_runs_side_by_side(scene, capsys):
    out, numbers = scene / "new/report.html", scene / "new/numbers.json"
    runs = [str(scene / "adamixer_tiny"), str(scene / "detr_tiny")]
    words = ["--data", str(scene / "data"), "--out", str(out), "--json", str(numbers), "--bootstrap", "10"]
    assert main(["analyze", *runs, *words]) == 0
    said = capsys.readouterr().out
    assert "AP of stage 1" in said and "difference" in said and "detr_tiny" in said
    data = json.loads(numbers.read_text())
    one = data["runs"][0]
    assert len(one["stages"]) == 4 and one["images"] == 3 and one["classes"] == [str(i) for i in range(10)]
    assert data["differences"]["AP of stage 1"]["value"] is not None
    shown = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text("utf-8"), re.DOTALL).group(1))
    assert [r["points"] for r in shown["runs"]] == [True, False]
    assert shown["runs"][0]["curves"]["loss"] == [[10, 9], [20, 8]]
    assert len(shown["images"]) == 3


def test_numbers_are_those_of_evaluation(scene):
    data = open_dataset(scene / "data", "val")
    detector = recollect.load(scene / "adamixer_tiny", "cpu")
    data = data.with_transform(evaluation_transform(detector.recipe.data))
    loader = lambda: evaluation_loader(data, 1, workers=0)  # noqa: E731
    metrics = evaluate_model(detector.model, loader(), data, device="cpu", stages=True)
    found = collect_stages(detector.model, loader(), data, device="cpu")
    from recollect.evaluation import evaluate_coco

    for stage, alone in enumerate(metrics.stages):
        again = evaluate_coco(data.ground_truth(), found.coco_results(stage, data.category_ids))
        assert again.stats == pytest.approx(alone.stats, nan_ok=True, abs=1e-12)
    assert found.scores.shape == (3, 4, 20) and found.top_scores.shape == (3, 4, 100)
    assert (found.scores[:, :, :].max(2) == found.top_scores[:, :, 0]).all()
    limited = collect_stages(detector.model, loader(), data, device="cpu", limit=2)
    assert limited.image_ids.tolist() == found.image_ids[:2].tolist()


def test_faults_are_one_sentence(scene, tmp_path, capsys):
    run = str(scene / "adamixer_tiny")
    for words, expected in (
        ([run], "--data DIR"),
        ([run, "--data", str(tmp_path / "nowhere")], "nowhere"),
        ([str(tmp_path), "--data", str(scene / "data")], "holds no weights"),
        ([run, "--data", str(scene / "data"), "--images", "0"], "--images 0"),
        ([run, "--data", str(scene / "data"), "--bootstrap", "-1"], "--bootstrap -1"),
    ):
        assert main(["analyze", *words]) == 1
        error = capsys.readouterr().err
        assert expected in error and error.strip().count("\n") == 0


def test_a_detector_without_stages_is_refused():
    model = recollect.create_model("retinanet_tiny", num_classes=2)
    with pytest.raises(ValueError, match="no decoder stages"):
        collect_stages(model, [], [], device="cpu")  # type: ignore[arg-type]
