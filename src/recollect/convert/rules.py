"""Name tables: how the names in a checkpoint of another project correspond to ours, one rule per line.

A table is data. It reads in both directions, and whatever it does not cover is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


class ConversionError(ValueError):
    """A checkpoint and a table or model do not fit together. The text names the first ten keys with both shapes."""


@dataclass(frozen=True)
class Rule:
    """One line of a name table: `Rule("head.{s}.fc.*", "stages.{s}.to_class.*")`.

    `{s}`, with any small letter, stands for a number and `*` for the rest of the name. A number that only one side has
    means that this side holds tied copies of one tensor of the other, one for every value the letter has in our names.
    A capital letter stands for one certain number, how many there are: `{S}` how many `stages.{s}.` our model has.

    theirs: template of their name; several mean that ours is their concatenation along `dim`, in equal parts.
    copies: further names of theirs for the same tensor, also tied.
    ours: template of our name, or None for an entry that we have no use for; `why` then says so. Such entries are kept
        beside the weights, so that the way back is complete.
    classes: the first dimension counts classes.
    first_to_last: so many leading rows of theirs (the background class) stand last in ours. without_first: so many
        leading rows of theirs ours does not have; on the way back they are zero.
    """

    theirs: str | tuple[str, ...]
    ours: str | None
    dim: int = 0
    copies: tuple[str, ...] = ()
    why: str = ""
    classes: bool = False
    first_to_last: int = 0
    without_first: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The templates of their names."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Table:
    """All rules for one family of detectors in the files of one project.

    source: the project. families: of our registry, that the table serves. marker: a template of a name that only files
    of this kind hold. rules: tried in order, the first that fits a name decides.
    given: arguments of the entry function that all files of this kind ask for.
    options: how arguments of the entry function follow from the file: {"num_classes": ("head.0.fc.bias", 0)} reads the
        size of dimension 0 of the first entry whose name fits, divided by a third number if there is one (anchors per
        cell); {"num_stages": ("head.{s}.", None)} counts the `{s}`.
    counts: what capital letters mean: {"S": "stages.{s}.*"} makes `{S}` the number of stages of our model.
    filled: patterns of our names that their files do not have; they stay as a fresh model has them.
    variant: whether a model of ours, given as its `state_dict(keep_vars=True)`, is what the files of this kind hold;
        decides between tables of one source on the way back.
    no_object: the last class row is "no object", which is not counted in `num_classes`.
    checked: what this table was verified against.
    """

    source: str
    families: tuple[str, ...]
    marker: str
    rules: tuple[Rule, ...]
    given: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, tuple[str, int | None] | tuple[str, int, int]] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)
    filled: tuple[str, ...] = ()
    variant: Callable[[Mapping[str, Tensor]], bool] = lambda _: True
    no_object: bool = False
    checked: str = ""


@dataclass(frozen=True)
class Converted:
    """state: tensors under our names. unused: entries of the file that ours has no place for, under their names."""

    state: dict[str, Tensor]
    unused: dict[str, Tensor]


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules with prefixes on both sides."""
    return tuple(
        replace(
            rule,
            theirs=tuple(theirs + part for part in rule.parts),
            copies=tuple(theirs + copy for copy in rule.copies),
            ours=None if rule.ours is None else ours + rule.ours,
        )
        for rule in rules
    )


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """The template as a regular expression with one named group per letter, and `rest` for the star."""
    expression, seen = "", set()
    for piece in re.split(r"(\{[a-z]\}|\*)", template):
        if piece == "*":
            expression += "(?P<rest>.*)"
        elif re.fullmatch(r"\{[a-z]\}", piece):
            letter = piece[1]
            expression += f"(?P={letter})" if letter in seen else rf"(?P<{letter}>\d+)"
            seen.add(letter)
        else:
            expression += re.escape(piece)
    return re.compile(expression)


def fits(template: str, name: str) -> bool:
    """Whether a name follows a template."""
    return _pattern(template).fullmatch(name) is not None


def _letters(template: str) -> set[str]:
    return set(re.findall(r"\{([a-z])\}", template))


def _fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z])\}|\*", lambda m: values[m.group(1) or "rest"], template)


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def bind(table: Table, ours: Iterable[str]) -> Table:
    """The table with its capital letters replaced by the numbers that they are for a model with these names."""
    names = list(ours)
    numbers = {
        letter: len({next(iter(found.values())) for found in (_match(template, name) for name in names) if found})
        for letter, template in table.counts.items()
    }

    def fill(text: str) -> str:
        return re.sub(r"\{([A-Z])\}", lambda m: str(numbers[m.group(1)]), text)

    rules = tuple(
        replace(
            rule,
            theirs=tuple(fill(part) for part in rule.parts),
            copies=tuple(fill(copy) for copy in rule.copies),
            ours=None if rule.ours is None else fill(rule.ours),
        )
        for rule in table.rules
    )
    return replace(table, rules=rules)


def _rule_of_theirs(table: Table, name: str) -> tuple[Rule, int, dict[str, str]] | None:
    """The rule for a name of theirs, which of its parts the name is, and the values of its placeholders."""
    for rule in table.rules:
        for index, template in enumerate((*rule.parts, *rule.copies)):
            values = _match(template, name)
            if values is not None:
                return rule, index if index < len(rule.parts) else 0, values
    return None


def _rule_of_ours(table: Table, name: str) -> tuple[Rule, dict[str, str]] | None:
    """The rule for a name of ours, and the values of its placeholders."""
    for rule in table.rules:
        values = None if rule.ours is None else _match(rule.ours, name)
        if values is not None:
            return rule, values
    return None


# --- Theirs to ours


def to_ours(table: Table, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Converted:
    """Rename every entry of a checkpoint, each exactly once. Values are not touched.

    state: their names. expected: `model.state_dict(keep_vars=True)` of our detector, on any device: shapes decide, and
    which entries are one and the same tensor; for entries that their files do not have (`filled`), also values.
    Raises ConversionError for entries that no rule covers, that our model lacks, that are missing, that differ in
    shape, or that are tied in our model and differ in the file.
    """
    table = bind(table, expected)
    numbers = _numbers(table, expected)
    pieces: dict[str, list[Tensor | None]] = {}
    dims: dict[str, int] = {}
    unused: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, value in state.items():
        found = _rule_of_theirs(table, name)
        if found is None:
            faults.append(f"{name} {_shape(value)}: no rule of the table {table.source!r} covers it")
            continue
        rule, part, values = found
        if rule.ours is None:
            unused[name] = value
            continue
        if rule.first_to_last or rule.without_first:
            value = value[rule.without_first :].roll(-rule.first_to_last, 0)
        for full in _copies(values, sorted(_letters(rule.ours) - set(values)), numbers):
            ours = _fill(rule.ours, full)
            slots = pieces.setdefault(ours, [None] * len(rule.parts))
            dims[ours] = rule.dim
            before = slots[part]
            if before is None:
                slots[part] = value
            elif not _same(before, value):
                faults.append(f"{name}: differs from another entry for {ours}, which is one tensor of ours")
    result: dict[str, Tensor] = {}
    for ours, slots in pieces.items():
        whole = [s for s in slots if s is not None]
        if len(whole) == len(slots):
            result[ours] = whole[0] if len(whole) == 1 else torch.cat(whole, dims[ours])
        else:
            faults.append(f"{ours}: only {len(whole)} of its {len(slots)} parts are in the file")
    for name, value in expected.items():
        if name not in pieces and any(fits(pattern, name) for pattern in table.filled):
            result[name] = value.detach()
    faults += compare(result, expected)
    for first, *others in tied(expected):
        faults += [
            f"{n}: differs from {first}, but they are one tensor of ours"
            for n in others
            if not faults and not _same(result[first], result[n])
        ]
    if faults:
        raise ConversionError(listing(faults))
    return Converted({name: result[name] for name in expected}, unused)


def tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Names that stand for one and the same tensor, of a `state_dict(keep_vars=True)`."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))


def _shape(value: Tensor) -> Shape:
    return tuple(value.shape)


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """What is missing, of another shape, or too many, as sentences with both shapes."""
    for name in expected:
        if name not in found:
            yield f"{name}: the model has {_shape(expected[name])}, the file has none"
        elif found[name].shape != expected[name].shape:
            yield f"{name}: the model has {_shape(expected[name])}, the file {_shape(found[name])}"
    for name in found:
        if name not in expected:
            yield f"{name}: the file has {_shape(found[name])}, the model none"


def listing(faults: list[str]) -> str:
    """The first ten faults and the number of the rest."""
    more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
    return "the file does not fit the model:\n  " + "\n  ".join(faults[:10]) + more


# --- Ours to theirs


def to_theirs(
    table: Table, state: Mapping[str, Tensor], unused: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The inverse of `to_ours`: entries under their names, tied copies written out.

    unused: what `to_ours` set aside, put back. Raises ConversionError for entries of ours without a rule.
    """
    table = bind(table, state)
    numbers = _numbers(table, state)
    result: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, value in state.items():
        if any(fits(pattern, name) for pattern in table.filled):
            continue
        found = _rule_of_ours(table, name)
        if found is None:
            faults.append(f"{name} {_shape(value)}: no rule of the table {table.source!r} covers it")
            continue
        rule, values = found
        if rule.first_to_last or rule.without_first:
            absent = value.new_zeros(rule.without_first, *value.shape[1:])
            value = torch.cat((absent, value.roll(rule.first_to_last, 0)))
        chunks = value.chunk(len(rule.parts), rule.dim) if len(rule.parts) > 1 else (value,)
        for template, chunk in (*zip(rule.parts, chunks), *((copy, value) for copy in rule.copies)):
            for full in _copies(values, sorted(_letters(template) - set(values)), numbers):
                result[_fill(template, full)] = chunk
    if faults:
        raise ConversionError(listing(faults))
    return {**result, **(unused or {})}


def _numbers(table: Table, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The numbers that each letter takes in our names: how many tied copies a rule that has it only on theirs means."""
    values: dict[str, set[str]] = {}
    for name in state:
        found = _rule_of_ours(table, name)
        for letter, value in (found[1] if found else {}).items():
            if letter != "rest":
                values.setdefault(letter, set()).add(value)
    return {letter: sorted(found, key=int) for letter, found in values.items()}


def _copies(values: dict[str, str], letters: list[str], numbers: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    if not letters:
        yield values
        return
    first, *rest = letters
    for number in numbers.get(first, []):
        yield from _copies({**values, first: number}, rest, numbers)


# --- What a file says about the model


def renamed(table: Table, name: str) -> str | None:
    """Our name for one of theirs, or None."""
    found = _rule_of_theirs(table, name)
    return None if found is None or found[0].ours is None else _fill(found[0].ours, found[2])


def class_entries(table: Table, state: Mapping[str, Tensor]) -> list[str]:
    """Names of theirs whose first dimension counts classes."""
    return [name for name in state if (found := _rule_of_theirs(table, name)) is not None and found[0].classes]


def read_options(table: Table, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Arguments of the entry function that follow from the shapes and names in a file; see `Table.options`."""
    options: dict[str, int] = {}
    for option, (template, dim, *per) in table.options.items():
        names = [name for name in state if fits(template, name)]
        if not names:
            continue
        if dim is None:
            (letter,) = _letters(template)
            options[option] = len({(_match(template, name) or {})[letter] for name in names})
        else:
            less = 1 if option == "num_classes" and table.no_object else 0
            options[option] = int(state[names[0]].shape[dim]) // (per[0] if per else 1) - less
    return options
