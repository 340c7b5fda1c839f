"""`recollect models`: the detectors there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from recollect.registry import create_model, list_models, model_entry


@dataclass(frozen=True)
class Arguments:
    """List the detectors: family, parameters, published AP and its source, whether recollection applies."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell-style pattern of names, e.g. "sqr_*"."""
    json: bool = False
    """Print JSON."""
    markdown: bool = False
    """Print the Markdown table of the README: all but the tiny ones."""


def run(arguments: Arguments) -> int:
    """Print the table."""
    names = list_models(arguments.pattern)
    if not names:
        raise ValueError(f"no detector's name matches {arguments.pattern!r}; without a pattern all are listed")
    rows = [describe(name) for name in names]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    if arguments.markdown:
        print(markdown([row for row in rows if not row["name"].endswith("_tiny")]))
        return 0
    table = Table("name", "family", "parameters", "published AP", "source", "recollection")
    table.columns[2].justify = table.columns[3].justify = "right"
    for row in rows:
        published = "" if row["published_ap"] is None else f"{row['published_ap']:.1f}"
        table.add_row(
            row["name"], row["family"], f"{row['parameters'] / 1e6:.1f} M", published, row["published_source"] or "",
            row["recollection"],
        )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # into a file or pipe: whole names
    console.print(table)
    console.print("published: COCO val2017 box AP as the authors report it, not measured by this project")
    return 0


def describe(name: str) -> dict[str, Any]:
    """One detector as plain data. Parameters are counted without allocating any, for 80 classes (10 for tiny ones)."""
    entry = model_entry(name)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model(name).parameters())
    published = entry.published
    return {
        "name": name,
        "family": entry.family,
        "paper": entry.paper,
        "parameters": parameters,
        "published_ap": published.ap if published else None,
        "published_source": published.source if published else None,
        "recollection": "on" if entry.recollects else "applies" if entry.staged else "does not apply",
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, with a last column for what people measured themselves."""
    lines = ["| name | family | paper | parameters | published AP | source | measured |", "|---" * 7 + "|"]
    for row in rows:
        published = "" if row["published_ap"] is None else f"{row['published_ap']:.1f}"
        size = f"{row['parameters'] / 1e6:.1f} M"
        cells = (f"`{row['name']}`", row["family"], row["paper"], size, published, row["published_source"] or "", "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
