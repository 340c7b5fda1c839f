import numpy as np
import pytest
import stage_definitions as literal
from stage_scenes import objects, predictions, random_scene

from recollect.analysis.average_precision import average_precision, bootstrap_weights
from recollect.analysis.oracle import THRESHOLDS, stage_worth
from recollect.evaluation import evaluate_coco

THING = (0, (0.0, 0.0, 10.0, 10.0), False)
HIT, OFF = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def truth_of(things):
    number = iter(range(1, 10_000))
    return {
        "images": [{"id": i + 1} for i in range(len(things))],
        "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
        "annotations": [
            {"id": next(number), "image_id": i + 1, "category_id": 10 * (k + 1), "bbox": list(b),
             "area": b[2] * b[3], "iscrowd": int(c)}
            for i, mine in enumerate(things) for k, b, c in mine
        ],
    }  # fmt: skip


def test_the_oracle_undoes_a_fade_and_an_exacerbation():
    # at the end the false positive stands above the true one; the first stage had them right
    stages = [[(0.8, 0, HIT), (0.2, 0, OFF)], [(0.4, 0, HIT), (0.5, 0, OFF)]]
    worth = stage_worth(predictions([stages]), objects([[THING]], 2))
    assert worth.stage_ap[:, 0] == pytest.approx([1.0, 0.5])
    assert worth.oracle_ap[0] == pytest.approx(1.0)
    assert worth.best_for_true.tolist() == [[1, 0]] and worth.best_for_false.tolist() == [[1, 0]]
    assert worth.best_for_image.tolist() == [0]
    assert worth.image_ap[0] == pytest.approx(0.5)


def test_the_oracle_needs_the_same_query_and_class():
    stages = [[(0.2, 0, OFF), (0.8, 0, HIT)], [(0.4, 0, HIT), (0.5, 0, OFF)]]  # the queries changed places
    worth = stage_worth(predictions([stages]), objects([[THING]], 2))
    assert worth.oracle_ap[0] == pytest.approx(0.5)
    stages = [[(0.8, 1, HIT), (0.2, 1, OFF)], [(0.4, 0, HIT), (0.5, 0, OFF)]]
    worth = stage_worth(predictions([stages]), objects([[THING]], 2))
    assert worth.oracle_ap[0] == pytest.approx(0.5)
    assert worth.best_for_true.tolist() == [[0, 1]]


def test_misses_stay_missed_and_equal_stages_count_for_the_last():
    worth = stage_worth(predictions([[[(0.8, 0, HIT)], [(0.4, 1, HIT)]]]), objects([[THING]], 2))
    assert worth.oracle_ap[0] == 0 and worth.best_for_image.tolist() == [0]
    worth = stage_worth(predictions([[[(0.8, 0, HIT)], [(0.4, 0, HIT)]]]), objects([[THING]], 2))
    assert worth.best_for_image.tolist() == [1]
    nothing = stage_worth(predictions([[[(0.8, 0, HIT)], [(0.4, 0, HIT)]]]), objects([[]], 2))
    assert np.isnan(nothing.oracle_ap[0]) and nothing.best_for_image.tolist() == [-1]


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_literal_definition(seed):
    said, things = random_scene(seed, images=3)
    if not any(not o[2] for mine in things for o in mine):
        pytest.skip("no object drawn")
    made = predictions(said, top=9)
    worth = stage_worth(made, objects(things, 2))
    best = [
        [[(*stage[q], q) for q in made.top_queries[i, s].tolist()] for s, stage in enumerate(image)]
        for i, image in enumerate(said)
    ]
    ap, choices = literal.oracle(best, things, 2, THRESHOLDS)
    assert worth.oracle_ap[0] == pytest.approx(ap, abs=1e-12)
    at = THRESHOLDS[5]
    for wanted, found in ((True, worth.best_for_true), (False, worth.best_for_false)):
        stages = [stage for true, stage in choices[at] if true is wanted]
        assert found.sum(0).tolist() == np.bincount(stages, minlength=4).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_ap_per_stage_is_the_official_one(seed):
    said, things = random_scene(seed, images=8)
    made, truth = predictions(said), objects(things, 2)
    worth = stage_worth(made, truth)
    for stage in range(made.num_stages):
        official = evaluate_coco(truth_of(things), made.coco_results(stage, [10, 20])).ap
        assert worth.stage_ap[stage, 0] == pytest.approx(official, abs=1e-12)
    for image in range(8):
        alone = evaluate_coco(truth_of(things), made.coco_results(3, [10, 20]), image_ids=[image + 1]).ap
        assert worth.image_ap[image] == pytest.approx(alone, abs=1e-9, nan_ok=True)


def test_bootstrap_weights_equal_repeating_images():
    said, things = random_scene(3, images=5)
    g = np.random.default_rng(0)
    said = [[[(v + g.uniform(0, 0.05), k, b) for v, k, b in stage] for stage in image] for image in said]  # no ties
    weights = bootstrap_weights(5, 4, seed=1)
    assert weights.shape == (4, 5) and (weights.sum(1) == 5).all()
    worth = stage_worth(predictions(said), objects(things, 2), weights)
    for sample, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(5), row)
        again = stage_worth(predictions([said[i] for i in drawn]), objects([things[i] for i in drawn], 2))
        for one, other in ((worth.stage_ap, again.stage_ap), (worth.oracle_ap[None], again.oracle_ap[None])):
            # equal scores in different images may stand in another order among repeated ones
            assert one[:, 1 + sample] == pytest.approx(other[:, 0], abs=1e-9)


def test_no_weight_on_any_object_gives_no_number():
    from recollect.analysis.average_precision import Ranking

    ranking = Ranking(np.array([0]), np.array([0]), np.array([[0.5]]), np.array([[0]]))
    ap = average_precision(ranking, objects([[THING], []], 2), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert ap[0] == pytest.approx(1) and np.isnan(ap[1])
