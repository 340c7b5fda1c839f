"""One list of classes for every split and every checkpoint: labels are places in it, names decide what is the same."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recollect.data.annotations import Annotations
from recollect.data.findings import DataError, Finding


def folded(name: str) -> str:
    """What is left of a name without case, spaces, hyphens and underscores."""
    return "".join(c for c in name.casefold() if not c.isspace() and c not in "-_")


def match_names(annotations: Annotations, names: Sequence[str]) -> Annotations:
    """Relabel so that label i means names[i], whatever order or ids the file has.

    Classes of the file that are not in `names` are left out if they have no objects, else DataError; classes that only
    `names` holds get ids that the file does not use.
    """
    if annotations.names == list(names):
        return annotations
    place = {name: label for label, name in enumerate(names)}
    counts = np.bincount(annotations.labels, minlength=len(annotations.names))
    strangers = [name for name, count in zip(annotations.names, counts) if count and name not in place]
    if strangers:
        name = strangers[0]
        near = [n for n in names if folded(n) == folded(name)] or difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}? Rename it there" if near else "give both sides the same list of classes"
        value = f"{name!r} has {counts[annotations.names.index(name)]} objects here, known are {', '.join(names):.200}"
        raise DataError(f"{Finding('category-stranger', annotations.file, value)}; {hint}")
    table = np.array([place.get(name, -1) for name in annotations.names], dtype=np.int32)
    unused = max(annotations.category_ids, default=0)
    ids = []
    for name in names:
        if name in annotations.names:
            ids.append(annotations.category_ids[annotations.names.index(name)])
        else:
            unused += 1
            ids.append(unused)
    labels = table[annotations.labels] if len(annotations.labels) else annotations.labels
    return replace(annotations, names=list(names), category_ids=ids, labels=labels)


def check_names(annotations: Annotations) -> list[Finding]:
    """Names given twice, or different only in case, spaces or hyphens."""
    findings, seen = [], {}
    for name in annotations.names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            findings.append(Finding("category-similar", annotations.file, f"{other!r} and {name!r}"))
    return findings


def compare_classes(train: Annotations, val: Annotations) -> list[Finding]:
    """What differs between the classes of two splits."""
    findings = []
    differences = [("train", set(train.names) - set(val.names)), ("val", set(val.names) - set(train.names))]
    told = "; ".join(f"only {side} lists {sorted(names)}" for side, names in differences if names)
    if told:
        findings.append(Finding("category-lists-differ", val.file, told[:300]))
    train_counts = dict(zip(train.names, np.bincount(train.labels, minlength=len(train.names))))
    val_counts = dict(zip(val.names, np.bincount(val.labels, minlength=len(val.names))))
    for name, count in val_counts.items():
        if count and not train_counts.get(name, 0):
            near = [n for n in train.names if n != name and folded(n) == folded(name)]
            hint = f"; train has {near[0]!r}" if near else ""
            kind = "category-only-val" if name in train_counts else "category-stranger"
            findings.append(Finding(kind, val.file, f"{name!r}: {count} objects{hint}"))
    return findings
