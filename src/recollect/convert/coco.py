"""COCO's 80 classes and the 91 ids they have: heads that are trained on ids have rows that stand for nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recollect.convert.rules import Table, class_entries

# fmt: off
CATEGORIES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}
# fmt: on
IDS, NAMES = list(CATEGORIES), list(CATEGORIES.values())
ROWS = 91  # ids 0 to 90


def cut_to_80(table: Table, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Keep the 80 rows that are classes, and "no object" if the head has it: (state, the rows that went).

    The first dimension of every class entry of the table must be 91, or 92 with "no object" as the last row.
    """
    result, gone = dict(state), {}
    for name in class_entries(table, state):
        value = state[name]
        kept, dropped = _rows(value.shape[0])
        result[name], gone[name] = value[kept], value[dropped]
    return result, gone


def restore_91(state: Mapping[str, Tensor], gone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `cut_to_80`."""
    result = dict(state)
    for name, rows in gone.items():
        kept, dropped = _rows(state[name].shape[0] + rows.shape[0])
        whole = state[name].new_empty(len(kept) + len(dropped), *state[name].shape[1:])
        whole[kept], whole[dropped] = state[name], rows
        result[name] = whole
    return result


def _rows(count: int) -> tuple[Tensor, Tensor]:
    if count not in (ROWS, ROWS + 1):
        raise ValueError(f"a class head of {count} rows is none of COCO's with 91 ids")
    kept = IDS + ([ROWS] if count > ROWS else [])
    dropped = [row for row in range(count) if row not in set(kept)]
    return torch.tensor(kept), torch.tensor(dropped)
