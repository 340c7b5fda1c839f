"""The definitions of the stage-wise analysis told literally, one detection at a time: slow, for cross-checks."""

import math

import numpy as np


def iou(box, xywh, crowd):
    x1, y1, x2, y2 = box
    gx, gy, gw, gh = xywh
    w = min(x2, gx + gw) - max(x1, gx)
    h = min(y2, gy + gh) - max(y1, gy)
    if w <= 0 or h <= 0:
        return 0.0
    area = (x2 - x1) * (y2 - y1)
    return w * h / (area if crowd else area + gw * gh - w * h)


def greedy(detections, objects, threshold, limit):
    """COCO's loop for one image. detections: [(score, label, box)]; objects: [(label, xywh, crowd)]; index or None."""
    answer = [None] * len(detections)
    ignored = [False] * len(detections)
    for label in {d[1] for d in detections}:
        mine = sorted((i for i, d in enumerate(detections) if d[1] == label), key=lambda i: -detections[i][0])
        for i in mine[limit:]:
            ignored[i] = True
        theirs = sorted((j for j, o in enumerate(objects) if o[0] == label), key=lambda j: objects[j][2])
        taken = set()
        for i in mine[:limit]:
            best, found = min(threshold, 1 - 1e-10), None
            for j in theirs:
                if j in taken and not objects[j][2]:
                    continue
                if found is not None and not objects[found][2] and objects[j][2]:
                    break
                overlap = iou(detections[i][2], objects[j][1], objects[j][2])
                if overlap < best:
                    continue
                best, found = overlap, j
            if found is None:
                continue
            if objects[found][2]:
                ignored[i] = True
            else:
                taken.add(found)
                answer[i] = found
    return answer, ignored


def fading(image, objects, threshold=0.75, limit=300):
    """image: per stage [(score, label, box)] by query. Returns tp, fading, fp, exacerbated, fn, recoverable."""
    stages = [greedy(stage, objects, threshold, limit) for stage in image]
    (final, ignored), earlier = stages[-1], range(len(image) - 1)
    tp = faded = fp = exacerbated = fn = recoverable = 0
    for query, (score, label, box) in enumerate(image[-1]):
        if ignored[query]:
            continue
        if final[query] is None:
            fp += 1
            for s in earlier:
                before, before_label, _ = image[s][query]
                if before_label != label:
                    continue
                match, skip = stages[s][0][query], stages[s][1][query]
                if match is not None or (not skip and before < score):
                    exacerbated += 1
                    break
        else:
            tp += 1
            _, xywh, _ = objects[final[query]]
            overlap = iou(box, xywh, False)
            for s in earlier:
                before, before_label, before_box = image[s][query]
                if before_label == label and iou(before_box, xywh, False) >= overlap and before > score:
                    faded += 1
                    break
    for j, (_, _, crowd) in enumerate(objects):
        if crowd or j in final:
            continue
        fn += 1
        recoverable += any(
            stages[s][0][query] == j and image[s][query][0] > 0.1 for s in earlier for query in range(len(image[s]))
        )
    return tp, faded, fp, exacerbated, fn, recoverable


def average_precision(rows, positives):
    """rows: (score, is true) in order of equals. COCO's 101 points."""
    rows = sorted(rows, key=lambda r: -r[0])
    recall, precision, true = [], [], 0
    for count, (_, right) in enumerate(rows, 1):
        true += right
        recall.append(true / positives)
        precision.append(true / count)
    total = 0.0
    for point in np.linspace(0, 1, 101):
        total += max((p for p, r in zip(precision, recall) if r >= point), default=0.0)
    return total / 101


def oracle(images, objects, classes, thresholds):
    """images: per image and stage its best [(score, label, box, query)]. objects: per image. AP and choices."""
    per_threshold, choices = [], {}
    for t in thresholds:
        rows = {k: [] for k in range(classes)}
        chosen = []
        for stages, things in zip(images, objects):
            matched = [greedy([d[:3] for d in stage], things, t, 1000) for stage in stages]
            for place, (score, label, _, query) in enumerate(stages[-1]):
                found, ignored = matched[-1][0][place], matched[-1][1][place]
                if ignored:
                    continue
                best, stage_of_best = score, len(stages) - 1
                for s in range(len(stages) - 1):
                    for p, (other, its_label, its_box, its_query) in enumerate(stages[s]):
                        if (its_query, its_label) != (query, label):
                            continue
                        unmatched = matched[s][0][p] is None and not matched[s][1][p]
                        if found is None and unmatched and other < best:
                            best, stage_of_best = other, s
                        if found is not None and iou(its_box, things[found][1], False) >= t and other > best:
                            best, stage_of_best = other, s
                rows[label].append((best, found is not None))
                chosen.append((found is not None, stage_of_best))
        choices[t] = chosen
        aps = []
        for k in range(classes):
            positives = sum(o[0] == k and not o[2] for things in objects for o in things)
            if positives:
                aps.append(average_precision(rows[k], positives))
        per_threshold.append(sum(aps) / len(aps) if aps else math.nan)
    return sum(per_threshold) / len(per_threshold), choices
