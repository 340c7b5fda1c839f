import json
import math

import numpy as np
import pytest

from recollect.evaluation import evaluate_proposals, evaluate_voc


def scene(objects, difficult=()):
    return {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 5, "bbox": list(b), "difficult": int(n in difficult)}
            for n, (i, b) in enumerate(objects, 1)
        ],
    }


def say(image, box, score):
    return {"image_id": image, "category_id": 5, "bbox": list(box), "score": score}


A, B, FAR = (0, 0, 10, 10), (30, 30, 10, 10), (70, 70, 10, 10)


def test_area_and_eleven_points_by_hand():
    truth = scene([(1, A), (1, B), (2, A)])
    results = [say(1, A, 0.9), say(1, FAR, 0.8), say(2, A, 0.7), say(2, FAR, 0.6)]
    # recall 1/3 at precision 1, then 2/3 at 2/3; the third object is never found
    area = evaluate_voc(truth, results)
    assert area.per_class["cat"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert math.isnan(area.per_class["dog"]) and area.mean == area.per_class["cat"]
    eleven = evaluate_voc(truth, results, method="07")
    assert eleven.mean == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recalls 0..0.3, then 0.4..0.6
    assert eleven.to_json()["per_class"]["dog"] is None


def test_a_second_answer_to_the_best_object_is_false_even_beside_another():
    close = (0, 3, 10, 10)
    truth = scene([(1, A), (1, close)])
    results = [say(1, A, 0.9), say(1, (0, 1, 10, 10), 0.8)]  # overlaps A most, and `close` by 8 / 12
    assert evaluate_voc(truth, results).mean == pytest.approx(0.5)
    assert evaluate_voc(scene([(1, A)]), results).mean == pytest.approx(1)


def test_difficult_objects_count_nowhere():
    truth = scene([(1, A), (1, B)], difficult={2})
    assert evaluate_voc(truth, [say(1, B, 0.9), say(1, A, 0.8)]).mean == pytest.approx(1)
    assert evaluate_voc(truth, [say(1, FAR, 0.9), say(1, A, 0.8)]).mean == pytest.approx(0.5)
    assert math.isnan(evaluate_voc(scene([(1, A)], {1}), []).mean)


def test_inclusive_pixels_make_boxes_one_longer():
    truth = scene([(1, (0, 0, 9, 9))])
    half = [say(1, (0, 0, 9, 4), 0.9)]  # 4 / 9 of the area, or 5 / 10 with the last pixels
    assert evaluate_voc(truth, half).mean == 0
    assert evaluate_voc(truth, half, inclusive_pixels=True).mean == pytest.approx(1)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="'area' or '07'"):
        evaluate_voc(scene([]), [], method="12")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="IoU"):
        evaluate_voc(scene([]), [], iou=50)
    with pytest.raises(ValueError, match="limits"):
        evaluate_proposals(scene([]), [], limits=[])


def test_proposals_equal_pycocotools_without_categories(shared):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder = shared / "data/cocoeval"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    stats = evaluate_proposals(truth, results, limits=(1, 5, 50))
    ground = COCO(str(folder / "instances_val2014_100.json"))
    evaluator = COCOeval(ground, ground.loadRes(results), "bbox")
    evaluator.params.useCats = 0
    evaluator.params.maxDets = [1, 5, 50]
    evaluator.evaluate()
    evaluator.accumulate()
    recall = evaluator.eval["recall"]
    assert stats["AR@5"] == np.mean(recall[:, 0, 0, 1])
    assert stats["AR@50"] == np.mean(recall[:, 0, 0, 2])
    assert stats["ARs@50"] == np.mean(recall[:, 0, 1, 2])
    assert list(stats) == ["AR@1", "AR@5", "AR@50", "ARs@50", "ARm@50", "ARl@50"]
