"""The command line: every verb, and one sentence for every fault."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import recollect
from recollect.cli import VERBS, main
from recollect.structures import Detections
from tiny_data import make_rectangles

SMALL = ["--size", "64", "--queries", "5", "--stages", "2", "--batch", "4", "--accelerator", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_rectangles(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    words = ["train", "sqr_adamixer_tiny", "--data", str(data), "--out", str(out), "--steps", "3", *SMALL]
    assert main([*words, "--recollection.start", "1", "--quiet"]) == 0
    return out


def test_help_is_quick_and_names_every_verb(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)
    code = "import sys, recollect.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0 and "usage: recollect" in capsys.readouterr().out


def test_models_with_published_numbers_and_their_source(capsys):
    assert main(["models", "*adamixer_[rt]*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (
        rows["sqr_adamixer_r50"]["published_ap"] == 44.5 and "SQR paper" in rows["sqr_adamixer_r50"]["published_source"]
    )
    assert rows["sqr_adamixer_r50"]["recollection"] == "on" and rows["adamixer_r50"]["recollection"] == "applies"
    assert 1e8 < rows["sqr_adamixer_r50"]["parameters"] < 2e8 and rows["adamixer_tiny"]["published_ap"] is None


FAULTS = {
    "unknown verb": (["trian"], "there is no verb 'trian': did you mean train?"),
    "unknown model": (["train", "sqr_adamixr_r50", "--data", "x"], "did you mean sqr_adamixer_r50"),
    "no model": (["train", "--data", "x"], "which detector"),
    "no data": (["train", "adamixer_tiny"], "which data?"),
    "missing data": (["train", "adamixer_tiny", "--data", "/nowhere"], "/nowhere"),
    "steps and epochs": (
        ["train", "adamixer_tiny", "--data", "x", "--steps", "3", "--epochs", "2"],
        "exclude each other",
    ),
    "batch": (["train", "adamixer_tiny", "--data", "x", "--batch", "0"], "--batch 0"),
    "recollection twice": (
        ["train", "sqr_adamixer_tiny", "--data", "x", "--no-recollection", "--recollection.start", "2"],
        "excludes",
    ),
    "backbone file": (["train", "adamixer_tiny", "--data", "x", "--backbone-weights", "/no.pt"], "/no.pt: there is no"),
    "backbone option": (["train", "adamixer_tiny", "--data", "x", "--backbone-options", "same"], "pad_type=same"),
    "missing run": (["predict", "/no/run", __file__], "/no/run"),
    "eval without data": (["eval", "/no/run"], "--data DIR"),
    "eval half": (["eval", "--predictions", "x.json"], "--truth"),
    "resume": (["train", "--resume", "/no/run"], "no run folder"),
    "no model of that pattern": (["models", "zzz*"], "zzz*"),
    "replay": (["replay", "/no/file.pt"], "/no/file.pt"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence_and_an_exit_code(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words, says = FAULTS[name]
    assert main(words) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("recollect: ") and says in error and error.count("\n") == 1 and "Traceback" not in error


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no run folder"):
        main(["train", "--resume", "/no/run", "--debug"])


def test_eval_writes_what_it_prints(run, data, tmp_path, capsys):
    assert main(["eval", str(run), "--data", str(data), "--json", str(tmp_path / "m.json"), "--stages"]) == 0
    content = json.loads((tmp_path / "m.json").read_text())
    assert len(content["stages"]) == 2 and set(content["per_class"]) == {"red", "green"}
    assert content["stats"] == content["stages"][-1] and "AP50" in capsys.readouterr().out


def test_eval_of_files(data, tmp_path, capsys):
    truth = json.loads((data / "instances_val.json").read_text())
    perfect = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]]
    (tmp_path / "p.json").write_text(json.dumps(perfect))
    words = ["eval", "--predictions", str(tmp_path / "p.json"), "--truth", str(data / "instances_val.json")]
    assert main([*words, "--json", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["stats"]["AP"] == pytest.approx(1.0)
    (tmp_path / "p.json").write_text("{")
    assert main(words) == 1 and "p.json is not JSON" in capsys.readouterr().err


def test_predict_draws_and_writes(run, data, tmp_path, capsys):
    words = ["predict", str(run), str(data / "images"), "--threshold", "0"]
    assert main([*words, "--draw", str(tmp_path / "drawn"), "--json", str(tmp_path / "found.json")]) == 0
    records = json.loads((tmp_path / "found.json").read_text())
    assert len(records) == len(list((tmp_path / "drawn").iterdir())) == 16
    assert records[0]["detections"][0]["name"] in ("red", "green") and records[0]["height"] == 64
    assert "train_0.png: " in capsys.readouterr().out
    (tmp_path / "torn.jpg").write_bytes(b"torn")
    assert main(["predict", str(run), str(tmp_path / "torn.jpg")]) == 1 and "torn.jpg" in capsys.readouterr().err


def test_fine_tuning_by_flag_and_training_without_recollection(run, data, tmp_path):
    words = ["train", "sqr_adamixer_tiny", "--data", str(data), "--out", str(tmp_path / "r"), "--steps", "1", *SMALL]
    assert main([*words, "--start-from", str(run), "--no-recollection", "--quiet", "--val", "none"]) == 0
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert recipe["options"]["recollection"] is None
    first = json.loads((run / "recipe.json").read_text())
    assert first["options"]["recollection"] == {"start": 1, "reach": 2, "repeat_last": False}


# --- the Python interface


def test_any_kind_of_picture_gives_the_same_detections(run, data):
    detector = recollect.load(run)
    file = data / "images" / "train_0.png"
    pixels = np.array(Image.open(file))
    kinds = [file, str(file), Image.open(file), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    found = detector.predict(kinds, threshold=0.0, batch=2)
    assert isinstance(found, list) and len(found) == 5
    assert all(torch.allclose(found[0].boxes, other.boxes, atol=1e-3) for other in found)
    one = detector.predict(file, threshold=0.0)
    assert isinstance(one, Detections) and len(one) == 10 and one.path == str(file)  # 5 queries x 2 classes
    assert (one.scores.diff() <= 0).all()


def test_boxes_are_in_the_pixels_of_the_image_given(run, data):
    detector = recollect.load(run)
    small = Image.open(data / "images" / "train_0.png")
    large = small.resize((192, 192), Image.Resampling.BILINEAR)
    a, b = detector.predict([small, large], threshold=0.0)
    # Scores of an untrained detector tie, so the boxes are compared in their own order.
    ours, theirs = (sorted((x.boxes * scale).round().tolist()) for x, scale in ((a, 3), (b, 1)))
    assert b.size == (192, 192) and torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=12)


def test_predicting_refuses_what_is_no_picture(run):
    detector = recollect.load(run)
    for wrong in (np.zeros((4, 4, 7), np.uint8), np.zeros((4, 4, 3)), torch.zeros(1, 4, 4), 3):
        with pytest.raises(ValueError, match=r"array must be|tensor must be|an image is"):
            detector.predict([wrong])


def test_python_verbs_mirror_the_commands(data, tmp_path):
    result = recollect.train(
        "adamixer_tiny", data=data, out=tmp_path / "r", steps=1, batch=2, size=(64,), queries=4, stages=2, quiet=True,
        accelerator="cpu", workers=0,
    )  # fmt: skip
    metrics = recollect.evaluate(result.folder, data, stages=True)
    assert len(metrics.stages) == 2 and metrics.images == 4
    with pytest.raises(ValueError, match="the detector knows 2 classes"):
        recollect.evaluate(result.folder, make_rectangles(tmp_path / "d", names=("a", "b", "c")))


def test_detections_index_filter_draw_and_convert(tmp_path):
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 25], [1, 1, 4, 4]])
    masks = torch.zeros(3, 30, 40, dtype=torch.bool)
    masks[1, 5:25, 5:20] = True
    found = Detections(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([1, 0, 1]), ("cat", "dog"), (30, 40), masks)
    assert len(found) == 3 and found.names == ["dog", "cat", "dog"] and [d.names[0] for d in found] == found.names
    assert found[-1].scores.item() == pytest.approx(0.1) and found[:2].masks.shape[0] == 2 and len(found[[]]) == 0
    assert found[found.labels == 1].names == ["dog", "dog"] and len(found.filter(0.5, ["dog"])) == 1
    with pytest.raises(ValueError, match="no class 'cow'; the detector knows cat, dog"):
        found.filter(classes=["cow"])
    with pytest.raises(IndexError):
        found[3]
    assert found.to_coco(7, [10, 20])[1] == {"image_id": 7, "category_id": 10, "bbox": [5, 5, 15, 20], "score": 0.5}
    found.save_json(tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["detections"][1]["name"] == "cat"
    drawn = np.array(found.draw(torch.zeros(3, 30, 40, dtype=torch.uint8)))
    assert drawn[24, 12].any() and drawn[15, 12].any() and not drawn[28, 35].any()
    with pytest.raises(ValueError, match="give draw"):
        found.draw()
    with pytest.raises(ValueError, match="its detections are for"):
        found.draw(Image.new("RGB", (3, 3)))


@pytest.mark.slow
def test_demo_quick(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    said = capsys.readouterr().out
    assert "Equal steps are not equal time" in said and "training time" in said and "SQR AP50" in said
    assert len(list((tmp_path / "runs" / "demo" / "pictures").iterdir())) == 6
