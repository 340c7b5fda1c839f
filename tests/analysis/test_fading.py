import math

import numpy as np
import pytest
import stage_definitions as literal
from stage_scenes import objects, predictions, random_scene

from recollect.analysis.fading import COUNTS, fading_analysis
from recollect.analysis.matching import IGNORED, UNMATCHED, find_candidates, match

THING = (0, (0.0, 0.0, 10.0, 10.0), False)
HIT, NEAR, OFF = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0), (50.0, 50.0, 60.0, 60.0)  # IoU 1, 0.9, 0


def analyse(stages, things, classes=2, **options):
    """stages: per stage, per query (score, label, box), of one image."""
    return fading_analysis(predictions([stages]), objects([things], classes), **options)


def counts(*args, **options):
    return dict(zip(COUNTS, analyse(*args, **options).counts[0].tolist()))


def expect(found, **numbers):
    assert found == {**dict.fromkeys(COUNTS, 0), **numbers}


def test_a_true_positive_that_was_surer_and_as_well_placed_fades():
    expect(counts([[(0.9, 0, HIT)], [(0.6, 0, NEAR)]], [THING]), tp=1, fading=1)
    expect(counts([[(0.9, 0, NEAR)], [(0.6, 0, NEAR)]], [THING]), tp=1, fading=1)  # the same IoU is enough
    expect(counts([[(0.9, 0, NEAR)], [(0.6, 0, HIT)]], [THING]), tp=1)  # it was worse placed
    expect(counts([[(0.6, 0, HIT)], [(0.6, 0, NEAR)]], [THING]), tp=1)  # equal scores are no fading
    expect(counts([[(0.9, 1, HIT)], [(0.6, 0, NEAR)]], [THING]), tp=1)  # it said another class
    # another query had it; that one ends as a false positive that was a match
    stages = [[(0.9, 0, HIT), (0.1, 0, OFF)], [(0.05, 0, OFF), (0.6, 0, NEAR)]]
    expect(counts(stages, [THING]), tp=1, fp=1, exacerbated=1)


def test_fading_looks_at_every_earlier_stage_and_needs_no_match_there():
    expect(counts([[(0.9, 0, HIT)], [(0.2, 0, OFF)], [(0.6, 0, NEAR)]], [THING]), tp=1, fading=1)
    # at the first stage query 0 takes the object from query 1, which is still surer and better placed than it ends
    first, last = [(0.95, 0, HIT), (0.9, 0, HIT)], [(0.1, 0, OFF), (0.6, 0, NEAR)]
    expect(counts([first, last], [THING]), tp=1, fading=1, fp=1, exacerbated=1)


def test_the_final_iou_counts_not_the_threshold():
    middle = (0.0, 0.0, 10.0, 8.0)  # IoU 0.8: a match, but less than the final 0.9
    expect(counts([[(0.9, 0, middle)], [(0.6, 0, NEAR)]], [THING]), tp=1)


def test_a_false_positive_is_exacerbated_when_its_score_grew():
    expect(counts([[(0.3, 0, OFF)], [(0.6, 0, OFF)]], []), fp=1, exacerbated=1)
    expect(counts([[(0.6, 0, OFF)], [(0.6, 0, OFF)]], []), fp=1)  # equal scores
    expect(counts([[(0.7, 0, OFF)], [(0.6, 0, OFF)]], []), fp=1)  # it fell
    expect(counts([[(0.3, 1, OFF)], [(0.6, 0, OFF)]], []), fp=1)  # another class
    expect(counts([[(0.7, 0, OFF)], [(0.2, 0, OFF)], [(0.6, 0, OFF)]], []), fp=1, exacerbated=1)  # any stage


def test_a_false_positive_is_exacerbated_when_it_was_a_match_whatever_its_score():
    missed = {"fn": 1, "recoverable": 1}
    expect(counts([[(0.9, 0, HIT)], [(0.6, 0, OFF)]], [THING]), fp=1, exacerbated=1, **missed)
    expect(counts([[(0.3, 0, HIT)], [(0.6, 0, OFF)]], [THING]), fp=1, exacerbated=1, **missed)
    expect(counts([[(0.9, 1, HIT)], [(0.6, 0, OFF)]], [THING]), fp=1, fn=1)


def test_a_match_in_a_crowd_counts_nowhere():
    crowd = (0, (40.0, 40.0, 40.0, 40.0), True)
    expect(counts([[(0.3, 0, OFF)], [(0.6, 0, OFF)]], [crowd]))
    # in the crowd at the first stage: neither unmatched nor matched there, so not exacerbated
    outside = (10.0, 10.0, 20.0, 20.0)
    expect(counts([[(0.3, 0, OFF)], [(0.6, 0, outside)]], [crowd]), fp=1)
    found = analyse([[(0.3, 0, OFF)], [(0.6, 0, outside)]], [crowd])
    assert found.matched[0, :, 0].tolist() == [IGNORED, UNMATCHED]
    # and a crowd is never missed nor taken up: two detections fall into it
    expect(counts([[(0.3, 0, OFF), (0.3, 0, OFF)]], [crowd]))


def test_a_missed_object_is_recoverable_from_a_match_above_a_tenth():
    for score, recoverable in ((0.05, 0), (0.1, 0), (0.11, 1)):
        found = counts([[(score, 0, HIT)], [(0.01, 1, OFF)]], [THING])
        expect(found, fp=1, fn=1, recoverable=recoverable)
    expect(counts([[(0.9, 0, (0.0, 0.0, 10.0, 7.0))], [(0.01, 1, OFF)]], [THING]), fp=1, fn=1)  # IoU 0.7: no match


def test_ties_go_to_the_earlier_query_and_the_later_object():
    twin = (0, (0.0, 0.0, 10.0, 10.0), False)
    found = analyse([[(0.5, 0, NEAR), (0.5, 0, HIT)]], [THING])
    assert found.matched[0, 0].tolist() == [0, UNMATCHED]  # equal scores: the first query, though placed worse
    found = analyse([[(0.5, 0, HIT)]], [THING, twin])
    assert found.matched[0, 0].tolist() == [1]  # equal overlaps: COCO takes the later


def test_detections_beyond_the_limit_count_nowhere():
    stage = [(0.9, 0, HIT), (0.8, 0, OFF), (0.7, 1, OFF), (0.6, 0, OFF)]
    expect(counts([stage], [THING], max_detections=2), tp=1, fp=2)


def test_one_stage_and_no_objects_and_rates():
    found = analyse([[(0.5, 0, HIT)]], [THING])
    assert found.rates()["fading_rate"] == 0 and math.isnan(found.rates()["exacerbation_rate"])
    four = analyse([[(0.3, 0, OFF), (0.9, 0, HIT)], [(0.6, 0, OFF), (0.6, 1, NEAR)]], [THING])
    assert four.totals() == {"tp": 0, "fading": 0, "fp": 2, "exacerbated": 1, "fn": 1, "recoverable": 1}
    assert four.rates()["spoiled_rate"] == pytest.approx(2 / 3)


def test_the_better_stage_is_named():
    found = analyse([[(0.7, 0, HIT)], [(0.9, 0, HIT)], [(0.6, 0, NEAR)]], [THING])
    assert found.better_stage[0, 0] == 1
    found = analyse([[(0.5, 0, OFF)], [(0.3, 0, OFF)], [(0.6, 0, OFF)]], [])
    assert found.better_stage[0, 0] == 1
    found = analyse([[(0.1, 0, OFF)], [(0.3, 0, HIT)], [(0.6, 0, OFF)]], [THING])
    assert found.better_stage[0, 0] == 1  # a match is better than a low score
    assert analyse([[(0.7, 0, OFF)], [(0.6, 0, OFF)]], []).better_stage[0, 0] == -1


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_literal_definition(seed):
    said, things = random_scene(seed)
    for threshold, limit in ((0.75, 300), (0.5, 3)):
        found = fading_analysis(predictions(said), objects(things, 2), threshold=threshold, max_detections=limit)
        wanted = [literal.fading(image, mine, threshold, limit) for image, mine in zip(said, things)]
        assert found.counts.tolist() == [list(w) for w in wanted]


def test_the_random_scenes_hold_every_kind():
    total = np.zeros(6, int)
    ignored = 0
    for seed in range(30):
        said, things = random_scene(seed)
        found = fading_analysis(predictions(said), objects(things, 2))
        total += found.counts.sum(0)
        ignored += (found.matched[:, -1] == IGNORED).sum()
    assert (total > 10).all() and ignored > 10, (total, ignored)


@pytest.mark.parametrize("seed", range(5))
def test_matches_equal_pycocotools(seed):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    said, things = random_scene(100 + seed, images=6, queries=20)
    made, truth = predictions(said), objects(things, 2)
    ground = COCO()
    ground.dataset = {
        "images": [{"id": i} for i in made.image_ids.tolist()],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": int(n), "image_id": int(i) + 1, "category_id": int(k) + 1, "bbox": b.tolist(), "area": 1.0,
             "iscrowd": int(c)}
            for n, i, k, b, c in zip(truth.ids, truth.image, truth.label, truth.xywh, truth.crowd)
        ],
    }  # fmt: skip
    ground.createIndex()
    candidates = find_candidates(made.scores, made.labels, made.boxes, truth)
    for stage in range(made.num_stages):
        results = []
        for i, rows in enumerate(said):
            results += [
                {"image_id": i + 1, "category_id": k + 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": s}
                for s, k, b in rows[stage]
            ]
        evaluator = COCOeval(ground, ground.loadRes(results), "bbox")
        evaluator.params.maxDets = [300]
        evaluator.params.areaRng = evaluator.params.areaRng[:1]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.evaluate()
        wanted = {}
        for entry in filter(None, evaluator.evalImgs):
            for t in range(10):
                for d, g, skip in zip(entry["dtIds"], entry["dtMatches"][t], entry["dtIgnore"][t]):
                    wanted[t, d] = IGNORED if skip else int(g) - 1
        for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
            mine = match(candidates, threshold)[:, stage].ravel()
            assert mine.tolist() == [wanted[t, d + 1] for d in range(len(mine))]
