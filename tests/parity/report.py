"""Write docs/parity.md: every case, every quantity, the largest deviation from the reference.

    PYTHONPATH=tests python -m parity.report [FILE]

RECOLLECT_PARITY chooses another set of golden values.
"""

import datetime
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from parity.ledger import Entry, Ledger
from parity.test_parity import CASES, check, holds_weights_only
from parity_methods.test_methods import CASES as METHODS
from parity_methods.test_methods import check_of
from recollect.convert.conversion import TABLES

HERE = Path(__file__).parent


def main(path: Path) -> None:
    sections = [
        (HERE / "introduction.md").read_text(),
        _made(),
        "## AdaMixer, Deformable DETR and query recollection\n",
    ]
    queries = [case for case in CASES if not holds_weights_only(case)]
    sections += [_section(case, check, (torch.float64, torch.float32)) for case in queries]
    sections.append(
        "## Dense heads, two-stage heads and shared parts\n\nOf MMDetection 2.12, in float64, within 1e-9.\n"
    )
    sections += [_section(case, compare, (torch.float64,)) for case in METHODS if (compare := check_of(case))]
    sections += [_checkpoints(), (HERE / "defects.md").read_text()]
    path.write_text("\n".join(sections), encoding="utf-8")


def _made() -> str:
    today = datetime.date.today().isoformat()
    return (
        f"Written by `PYTHONPATH=tests python -m parity.report` on {today}, once, with torch {torch.__version__} on "
        f"{platform.machine()}, CPU, one thread. `tests/parity` and `tests/parity_methods` compare the same.\n"
    )


def _checkpoints() -> str:
    """What every name table of `recollect convert` was held against."""
    rows = dict.fromkeys(f"| {', '.join(t.families)} | {t.source} | {t.checked} |" for t in TABLES)
    title = "## Checkpoints that `recollect convert` reads and writes\n"
    return "\n".join([title, "| detectors | source | held against |", "|---|---|---|", *rows, ""])


def _section(case: Any, compare: Callable[[Any, Ledger], None], dtypes: tuple[torch.dtype, ...]) -> str:
    found: dict[str, dict[str, Entry]] = {}
    ledgers = [Ledger(case.name, dtype) for dtype in dtypes]
    for ledger in ledgers:
        compare(case, ledger)
        for entry in ledger.worst():
            found.setdefault(entry.quantity, {})[entry.precision] = entry
    print(case.name, sum(not e.passed for row in found.values() for e in row.values()), "failures", flush=True)
    precisions = [ledger.precision for ledger in ledgers]
    head = "| quantity |" + "".join(f" {precision} | allowed |" for precision in precisions)
    rule = "|---|" + "---|---|" * len(precisions)
    rows = [_row(quantity, [entries.get(p) for p in precisions]) for quantity, entries in found.items()]
    note = case.entry.get("note")
    return "\n".join([f"### {case.name}\n", *([f"{note}\n"] if note else []), head, rule, *rows, ""])


def _row(quantity: str, entries: Iterable[Entry | None]) -> str:
    cells = [quantity]
    for entry in entries:
        if entry is None:
            cells += ["", ""]
        else:
            mark = "" if entry.passed else " **failed**"
            cells += [f"{entry.deviation:.1e}{mark}" if entry.tolerance else f"{entry.deviation:g}{mark}"]
            cells += [f"{entry.tolerance:g}" if entry.tolerance else "exact"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/parity.md"))
