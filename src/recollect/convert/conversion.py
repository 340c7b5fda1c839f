"""The verbs: a checkpoint of another project becomes weights of ours, and the other way round."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recollect.convert import adamixer, coco, dab_detr, deformable_detr, dense, detr, sparse_rcnn, two_stage
from recollect.convert.checkpoint import Checkpoint, read_checkpoint
from recollect.convert.rules import ConversionError, Table, class_entries, fits, read_options, to_ours, to_theirs
from recollect.convert.weights import model_from_weights, save_weights
from recollect.registry import ModelEntry, create_model, model_entry

TABLES: tuple[Table, ...] = (
    *adamixer.TABLES,
    *deformable_detr.TABLES,
    *detr.TABLES,
    *dab_detr.TABLES,
    *sparse_rcnn.TABLES,
    *dense.TABLES,
    *two_stage.TABLES,
)
Coco91 = Literal["cut", "keep"]

# Under which key a project looks for the weights in its files; "" for a file that is nothing but weights.
_WRAPPERS = {"detr": "model", "deformable-detr": "model", "dab-detr": "model", "detrex": "model", "torchvision": ""}


@dataclass(frozen=True)
class Conversion:
    """A detector with converted weights, and the card that belongs to it. notes: what the user should know."""

    model: nn.Module
    card: dict[str, Any]
    notes: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write weights and card as safetensors."""
        save_weights(path, self.model, self.card)


def tables_for(family: str, source: str | None = None) -> list[Table]:
    """The name tables for a family of detectors; ValueError naming the sources if there is none of that name."""
    tables = [t for t in TABLES if family in t.families]
    if source is not None:
        sources = sorted({t.source for t in tables})
        tables = [t for t in tables if t.source == source]
        if not tables:
            raise ValueError(f"{family} has no name table for {source!r}; it has {', '.join(sources) or 'none'}")
    return tables


def find_table(entry: ModelEntry, checkpoint: Checkpoint, source: str | None = None) -> Table:
    """The table whose marker is in the file; ValueError with names of both sides if there is none."""
    for table in tables_for(entry.family, source):
        if any(fits(table.marker, name) for name in checkpoint.state):
            return table
    known = {t.source: t.marker for t in tables_for(entry.family, source)}
    listed = "\n  ".join(f"{name} {tuple(value.shape)}" for name, value in list(checkpoint.state.items())[:10])
    markers = "; ".join(f"{name} has {marker}" for name, marker in known.items()) or "none"
    raise ConversionError(
        f"{checkpoint.path} is no checkpoint of {entry.name} that a name table covers. Known: {markers}. "
        f"The file's first ten of {len(checkpoint.state)} entries:\n  {listed}"
    )


def convert(
    checkpoint: str | Path,
    model: str,
    *,
    source: str | None = None,
    coco91: Coco91 | None = None,
    names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Conversion:
    """Read a checkpoint of another project into a detector of ours.

    model: name of a registered detector. source: which project's names to expect; by default the file decides.
    coco91: heads trained on COCO's 91 category ids: "cut" keeps the 80 that exist, "keep" all rows. There is no
        default: such a file is refused until you say.
    names: class names; by default those in the file, COCO's for a cut head. options: of the detector; numbers of
        classes, queries and stages follow from the file.
    Raises ValueError naming the file, or the first ten names that do not fit, with both shapes.
    """
    entry = model_entry(model)
    read = read_checkpoint(checkpoint)
    table = find_table(entry, read, source)
    notes = [*read.notes, f"read as {table.source}; this table was checked against: {table.checked}"]
    state, gone = dict(read.state), {}
    found = {name: value for name, value in read_options(table, state).items() if name in entry.options}
    chosen = {**table.given, **found, **(options or {})}
    if chosen.get("num_classes") == coco.ROWS and class_entries(table, state):
        if coco91 is None:
            raise ValueError(
                f"{read.path}: its class head has {coco.ROWS} rows, as many as COCO has category ids, of which only "
                "80 are classes. Say --coco91 cut to keep the rows of these 80, or --coco91 keep to keep all"
            )
        if coco91 == "cut":
            state, gone = coco.cut_to_80(table, state)
            chosen["num_classes"] = len(coco.NAMES)
            notes.append(
                f"kept the rows of COCO's 80 classes (ids {coco.IDS[0]} to {coco.IDS[-1]}) in {', '.join(gone)}"
            )
    elif coco91 == "cut":
        raise ValueError(f"{read.path}: its class head has no {coco.ROWS} rows to cut, but {chosen.get('num_classes')}")
    built = create_model(model, **chosen)
    try:
        converted = to_ours(table, state, built.state_dict(keep_vars=True))
    except ConversionError as error:
        raise ConversionError(f"{read.path}, read as {table.source}, for {model}: {error}") from error
    classes = int(chosen.pop("num_classes", 0)) or _default_classes(entry)
    kept_names = _names(read, classes, names, bool(gone), notes)
    notes += _other_dtypes(converted.state, built)
    built.load_state_dict(converted.state)
    recipe = replace(entry.recipe(), model=model, options=chosen)
    card: dict[str, Any] = {
        "model": model,
        "options": chosen,
        "names": kept_names,
        "recipe": recipe.to_json(),
        "converted": {
            "source": table.source,
            "file": read.path.name,
            "sha256": _sha256(read.path),
            "unused": {name: _pack(value) for name, value in converted.unused.items()},
            "rows": {name: _pack(value) for name, value in gone.items()},
        },
    }
    if kept_names == coco.NAMES:
        card["category_ids"] = coco.IDS
    return Conversion(built.eval(), card, tuple(notes))


def to_reference(weights: str | Path, *, source: str | None = None) -> dict[str, Any]:
    """Weights of ours under the names of the project they came from, or of `source`, as that project's files are.

    Returns what `torch.save` should write. ValueError if no table covers the detector.
    """
    model, card = model_from_weights(weights)
    entry = model_entry(card["model"])
    origin = card.get("converted", {})
    wanted = source or origin.get("source")
    ours = model.state_dict(keep_vars=True)
    tables = [t for t in tables_for(entry.family, wanted) if t.variant(ours)]
    if wanted is None and len({t.source for t in tables}) != 1:
        sources = ", ".join(sorted({t.source for t in tables})) or "none"
        raise ValueError(f"{weights} was not converted from anything; say --source, one of {sources}")
    same = origin.get("source") == wanted
    unused = {name: _unpack(value) for name, value in origin.get("unused", {}).items()} if same else {}
    rows = {name: _unpack(value) for name, value in origin.get("rows", {}).items()} if same else {}
    refused: ConversionError | None = None
    for table in tables:
        try:
            theirs = to_theirs(table, ours, unused)
        except ConversionError as error:
            refused = error
            continue
        state = {name: value.detach().clone() for name, value in coco.restore_91(theirs, rows).items()}
        wrapper = _WRAPPERS.get(table.source, "state_dict")
        if not wrapper:
            return state
        return {wrapper: state, **({"meta": {"CLASSES": tuple(card["names"])}} if wrapper == "state_dict" else {})}
    raise ConversionError(f"{weights} ({entry.name}) cannot be written under the names of {wanted}: {refused}")


def write_reference(weights: str | Path, out: str | Path, *, source: str | None = None) -> None:
    """`to_reference`, written as a torch file of plain tensors."""
    torch.save(to_reference(weights, source=source), out)


def _default_classes(entry: ModelEntry) -> int:
    import inspect

    return int(inspect.signature(entry.build).parameters["num_classes"].default)


def _names(read: Checkpoint, classes: int, given: Sequence[str] | None, cut: bool, notes: list[str]) -> list[str]:
    """Class names: given, COCO's, the file's, or numbers."""
    for origin, names in (("the names given", given), ("the file's names", read.names)):
        if names is not None:
            if len(names) != classes:
                raise ValueError(f"{read.path}: {origin} are {len(names)}, but the detector has {classes} classes")
            return list(names)
    if cut:
        return list(coco.NAMES)
    notes.append(f"the file holds no class names; the {classes} classes are numbered. Give --names to name them")
    return [f"class {index}" for index in range(classes)]


def _other_dtypes(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    own = model.state_dict()
    kinds = {str(v.dtype).removeprefix("torch.") for n, v in state.items() if v.dtype != own[n].dtype}
    return [f"entries in {', '.join(sorted(kinds))} became the model's own precision"] if kinds else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pack(value: Tensor) -> dict[str, Any]:
    """A small tensor as JSON, bit for bit."""
    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    kind = str(value.dtype).removeprefix("torch.")
    return {"dtype": kind, "shape": list(value.shape), "data": base64.b64encode(raw).decode("ascii")}


def _unpack(packed: Mapping[str, Any]) -> Tensor:
    raw = torch.frombuffer(bytearray(base64.b64decode(packed["data"])), dtype=torch.uint8)
    return raw.view(getattr(torch, packed["dtype"])).reshape(packed["shape"])
