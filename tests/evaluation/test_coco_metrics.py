import copy
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from recollect.evaluation import evaluate_coco


@pytest.fixture(scope="module")
def demo(shared):
    folder = shared / "data/cocoeval"
    read = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    return {
        "truth": read("instances_val2014_100.json"),
        "bbox": read("instances_val2014_fakebbox100_results.json"),
        "segm": read("instances_val2014_fakesegm100_results.json"),
        "expected": read("expected_pycocotools_2.0.11.json"),
    }


def pycocotools(truth, results, iou_type, **params):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = copy.deepcopy(truth)
    ground = COCO()
    ground.dataset = truth
    ground.createIndex()
    evaluator = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), iou_type)
    for name, value in params.items():
        setattr(evaluator.params, name, value)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval


def tiny(boxes=((0, (0, 0, 10, 10)),), images=2, crowd=()):
    return {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, images + 1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "[dog]"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": (3, 7)[k], "bbox": list(b), "area": b[2] * b[3],
             "iscrowd": int(n in crowd)}
            for n, (k, b) in enumerate(boxes, 1)
        ],
    }  # fmt: skip


def result(box=(0, 0, 10, 10), score=0.9, image=1, category=3):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def test_equals_pycocotools_to_the_last_bit(demo):
    for kind in ("bbox", "segm"):
        metrics = evaluate_coco(demo["truth"], demo[kind], iou_type=kind)
        assert list(metrics.stats.values()) == demo["expected"][kind]
        assert list(metrics.stats) == [
            "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
        ]  # fmt: skip
        per_class = {n: None if math.isnan(r["AP"]) else r["AP"] for n, r in metrics.per_class.items()}
        assert per_class == demo["expected"][f"{kind}_per_category_AP"]


def test_equals_pycocotools_with_other_thresholds_limits_classes_and_images(demo):
    truth, results = demo["truth"], demo["bbox"]
    ids = sorted(image["id"] for image in truth["images"])[::3]
    names = ["person", "car", "dog"]
    categories = sorted(c["id"] for c in truth["categories"] if c["name"] in names)
    thresholds = [0.3, 0.5, 0.85]
    metrics = evaluate_coco(
        truth, results, iou_thresholds=thresholds, max_detections=3, classes=names, image_ids=ids
    )  # fmt: skip
    reference = pycocotools(
        truth, results, "bbox", iouThrs=np.array(thresholds), maxDets=[1, 3, 10], catIds=categories, imgIds=ids
    )
    p, r = reference["precision"][..., 0, 1], reference["recall"][..., 0, :]
    assert metrics.stats["AP"] == np.mean(p[p > -1])
    assert metrics.stats["AP50"] == np.mean(p[1][p[1] > -1])
    assert metrics.stats["AR3"] == np.mean(r[..., 1][r[..., 1] > -1])
    assert "AP75" not in metrics.stats and "AR10" not in metrics.stats
    assert set(metrics.per_class) == set(names)
    assert metrics.images == len(ids)
    assert metrics.per_class["person"]["objects"] == sum(
        a["image_id"] in ids and a["category_id"] == 1 and not a["iscrowd"] for a in truth["annotations"]
    )


def test_no_results_score_zero_and_no_objects_score_nothing():
    nothing = evaluate_coco(tiny(), [])
    assert nothing.stats["AP"] == 0 and nothing.stats["AR100"] == 0
    assert math.isnan(nothing.stats["APl"])  # there is no large object
    empty = evaluate_coco(tiny(boxes=()), [result()])
    assert math.isnan(empty.ap) and empty.to_json()["stats"]["AP"] is None
    json.dumps(empty.to_json(), allow_nan=False)


def test_annotation_ids_that_scoring_cannot_use_are_renumbered():
    truth = tiny(boxes=((0, (0, 0, 10, 10)), (0, (50, 50, 20, 20))))
    results = [result(), result((50, 50, 20, 20), 0.8)]
    assert evaluate_coco(truth, results).ap == pytest.approx(1)
    for ids in ((0, 1), (5, 5), (None, 1)):
        for annotation, number in zip(truth["annotations"], ids):
            annotation["id"] = number
        before = copy.deepcopy(truth)
        metrics = evaluate_coco(truth, results)
        assert metrics.ap == pytest.approx(1), ids
        assert "renumbered" in metrics.notes[0]
        assert truth == before
    # the trap this saves users from: as given, an object of id 0 is never found
    for annotation, number in zip(truth["annotations"], (0, 1)):
        annotation["id"] = number
    assert np.mean(pycocotools(truth, results, "bbox")["precision"][:, :, 0, 0, 2]) < 0.6


def test_missing_area_and_iscrowd_are_filled():
    truth = tiny(boxes=((0, (0, 0, 50, 50)),))
    del truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]
    metrics = evaluate_coco(truth, [result((0, 0, 50, 50))])
    assert metrics.stats["APm"] == pytest.approx(1)
    assert "area" in metrics.notes[0]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(image=99)], "image ids that the ground truth does not have (99)"),
        ([result(category=1)], "labels 0..K-1 instead of category ids"),
        ([result(score=float("nan"))], "result 0 (image id 1) has the score nan"),
        ([result(), result((0, 0, -1, 5))], "result 1 (image id 1) has the box"),
        ([result((0, 0, float("inf"), 5))], "finite"),
        ([{"image_id": 1}], "no COCO result"),
        ([{"image_id": 1, "category_id": 3, "score": 0.5, "bbox": None}], "has the box None"),
    ],
)
def test_results_that_cannot_be_scored_are_named(results, words):
    with pytest.raises(ValueError) as caught:
        evaluate_coco(tiny(), results)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("images"), "no list 'images'"),
        (lambda t: t["images"].clear(), "holds no image"),
        (lambda t: t["images"].append(t["images"][0]), "more than once"),
        (lambda t: t["annotations"][0].update(image_id=9), "image id 9"),
        (lambda t: t["annotations"][0].update(category_id=9), "category id 9"),
        (lambda t: t["annotations"][0].pop("bbox"), "no 'bbox'"),
        (lambda t: t["annotations"][0].update(bbox=[1, 2]), "give [x, y, width, height]"),
    ],
)
def test_ground_truth_that_cannot_be_scored_is_named(change, words):
    truth = tiny()
    change(truth)
    with pytest.raises(ValueError) as caught:
        evaluate_coco(truth, [])
    assert words in str(caught.value)


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="no class horse"):
        evaluate_coco(tiny(), [], classes=["horse"])
    with pytest.raises(ValueError, match="thresholds"):
        evaluate_coco(tiny(), [], iou_thresholds=[0.5, 50])
    with pytest.raises(ValueError, match="image_ids"):
        evaluate_coco(tiny(), [], image_ids=[4])


def test_tables_show_names_as_they_are():
    metrics = evaluate_coco(tiny(boxes=((0, (0, 0, 10, 10)), (1, (50, 50, 20, 20)))), [result()])
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(metrics.table())
    console.print(metrics.table(per_class=True))
    text = out.getvalue()
    assert "[dog]" in text and "50.0" in text and "AR100" in text
    assert text.index("cat") < text.index("[dog]")  # best first


def test_two_categories_of_one_name_stay_apart():
    truth = tiny()
    truth["categories"][1]["name"] = "cat"
    assert set(evaluate_coco(truth, []).per_class) == {"cat (id 3)", "cat (id 7)"}


def test_rescoring_equals_scoring_anew(demo):
    for kind in ("bbox", "segm"):
        ids = sorted(image["id"] for image in demo["truth"]["images"])[:60]
        metrics = evaluate_coco(demo["truth"], demo[kind], iou_type=kind, image_ids=ids)
        assert metrics.rescored().stats == metrics.stats
        options = {"iou_thresholds": [0.4, 0.5], "classes": ["person", "dog"]}
        again = metrics.rescored(**options)
        anew = evaluate_coco(demo["truth"], demo[kind], iou_type=kind, image_ids=ids, **options)
        assert again.stats == anew.stats and again.per_class == anew.per_class


def test_the_verb_prints_what_is_asked_for(tmp_path, capsys):
    from recollect.cli import main

    truth, results, out = tmp_path / "truth.json", tmp_path / "results.json", tmp_path / "out.json"
    truth.write_text(json.dumps(tiny(boxes=((0, (0, 0, 10, 10)), (1, (50, 50, 20, 20))))))
    results.write_text(json.dumps([result(), result((50, 50, 20, 14), 0.4, category=7)]))  # IoU 0.7
    files = ["eval", "--predictions", str(results), "--truth", str(truth), "--json", str(out)]
    assert main(files) == 0
    assert "[dog]" not in capsys.readouterr().out
    assert json.loads(out.read_text())["stats"]["AP"] == pytest.approx((1 + 0.5) / 2)
    assert main([*files, "--per-class", "--iou", "0.5", "0.8", "--voc", "area", "--recall-at", "1", "10"]) == 0
    said = capsys.readouterr().out
    assert "[dog]" in said and "VOC mAP (area, IoU 0.5): 100.0" in said and "AR@10" in said
    data = json.loads(out.read_text())
    assert data["stats"]["AP"] == pytest.approx(0.75) and data["voc"]["mAP"] == 1
    assert data["recall"]["AR@1"] == pytest.approx(0.5) and data["recall"]["ARl@10"] is None
    assert main([*files, "--classes", "cat"]) == 0
    assert json.loads(out.read_text())["stats"]["AP"] == pytest.approx(1)
    assert main([*files, "--classes", "horse"]) == 1
    assert "no class horse" in capsys.readouterr().err
