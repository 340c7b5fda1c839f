import json
import math

import pytest

from recollect.analysis.errors import error_breakdown
from recollect.evaluation import evaluate_coco


def test_every_kind_of_error_is_counted_once():
    boxes = [(0, 0, 20, 20), (100, 0, 20, 20), (200, 0, 20, 20), (300, 0, 20, 20)]
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": list(b)} for n, b in enumerate(boxes, 1)],
    }

    def say(box, score, category=1):
        return {"image_id": 1, "category_id": category, "bbox": list(box), "score": score}

    results = [
        say(boxes[0], 0.95),
        say(boxes[0], 0.6),  # duplicate
        say(boxes[1], 0.9, 2),  # classification
        say((200, 0, 20, 8), 0.8),  # localisation: IoU 0.4
        say((500, 500, 10, 10), 0.7),  # background
    ]  # the fourth object is missed
    errors = error_breakdown(evaluate_coco(truth, results))
    assert {k: v["count"] for k, v in errors.kinds.items()} == {
        "classification": 1, "localisation": 1, "both": 0, "duplicate": 1, "background": 1, "missed": 1,
    }  # fmt: skip
    assert errors.names == ["cat", "dog"]
    assert errors.confusion[0].tolist() == [1, 1, 2]  # cats taken for: cat, dog, nothing
    assert errors.confusion[2].tolist() == [3, 0, 0]  # background taken for a cat
    assert errors.images[1]["tp"] == 1 and errors.images[1]["fn"] == 3
    assert errors.curves["cat"][0] == pytest.approx(1) and errors.curves["cat"][30] == 0
    assert math.isnan(errors.curves["dog"][0])
    assert sum(b["count"] for b in errors.calibration) == 5
    json.dumps(errors.to_json(), allow_nan=False)
