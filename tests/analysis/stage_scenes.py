"""Making `StagePredictions` and `Objects` by hand and at random."""

import numpy as np

from recollect.analysis.predictions import Objects, StagePredictions


def predictions(images, top=None):
    """images: per image, per stage, per query (score, label, xyxy). top: how many stand among the best."""
    scores = np.array([[[d[0] for d in stage] for stage in image] for image in images], np.float64)
    labels = np.array([[[d[1] for d in stage] for stage in image] for image in images], np.int32)
    boxes = np.array([[[d[2] for d in stage] for stage in image] for image in images], np.float64)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :top].astype(np.int32)
    return StagePredictions(
        np.arange(1, len(images) + 1),
        scores,
        labels,
        boxes,
        np.take_along_axis(scores, order, 2),
        np.take_along_axis(labels, order, 2),
        order,
    )


def objects(images, classes):
    """images: per image [(label, xywh, crowd)]."""
    rows = [(i, *o) for i, things in enumerate(images) for o in things]
    image, label, xywh, crowd = zip(*rows) if rows else ([], [], [], [])
    return Objects(
        np.array(image, np.int64),
        np.array(label, np.int64),
        np.array(xywh, np.float64).reshape(-1, 4),
        np.array(crowd, bool),
        np.arange(1, len(rows) + 1),
        len(images),
        classes,
    )


def random_scene(seed, images=4, stages=4, queries=12, classes=2, crowds=True):
    """Crowded little scenes on whole numbers, with many equal scores, equal boxes and equal overlaps."""
    g = np.random.default_rng(seed)
    things, said = [], []
    for _ in range(images):
        count = int(g.integers(0, 6))
        mine = []
        for _ in range(count):
            x, y = g.integers(0, 30, 2)
            w, h = g.integers(8, 24, 2)
            mine.append((int(g.integers(0, classes)), (float(x), float(y), float(w), float(h)),
                         bool(crowds and g.random() < 0.2)))  # fmt: skip
        things.append(mine)
        per_stage = []
        home = [mine[int(g.integers(0, count))] if count and g.random() < 0.8 else None for _ in range(queries)]
        for _ in range(stages):
            row = []
            for q in range(queries):
                if home[q] is None:
                    x, y, w, h = (*g.integers(0, 30, 2), *g.integers(8, 24, 2))
                    label = int(g.integers(0, classes))
                else:
                    label, (x, y, w, h), _ = home[q]
                    dx, dy, dw, dh = g.integers(-1, 2, 4) * (g.random() < 0.7)
                    x, y, w, h = x + dx, y + dy, w + dw, h + dh
                    label = label if g.random() < 0.85 else int(g.integers(0, classes))
                row.append((float(g.integers(0, 12)) / 12, label, (float(x), float(y), float(x + w), float(y + h))))
            per_stage.append(row)
        said.append(per_stage)
    return said, things
