"""`recollect convert`: checkpoints of other projects, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Arguments:
    """Read another project's checkpoint (`convert FILE --model NAME --out FILE.safetensors`), or write one again
    (`convert WEIGHTS --to-reference --out FILE.pth`).
    """

    checkpoint: tyro.conf.Positional[Path]
    """A torch checkpoint of plain tensors, or safetensors; with --to-reference weights of ours."""
    out: Path
    """File to write."""
    model: str | None = None
    """Which detector it is: a name that `recollect models` lists, or for a backbone its timm name."""
    source: str | None = None
    """Whose names the file has (mmdet2, mmdet3, detr, ...); by default the file decides."""
    coco91: Literal["cut", "keep"] | None = None
    """Heads over COCO's 91 category ids: cut to the 80 classes, or keep all rows."""
    names: Path | None = None
    """Class names, one per line, if the file has none."""
    to_reference: bool = False
    """The other way: our weights under the names of the project they came from, or of --source."""


def run(arguments: Arguments) -> int:
    """Convert and report."""
    from recollect.convert import convert, convert_backbone, is_backbone, write_reference

    console = Console(highlight=False)
    if arguments.checkpoint.resolve() == arguments.out.resolve():
        raise ValueError(f"{arguments.out} would overwrite what it is made of; choose another --out")
    if arguments.to_reference:
        write_reference(arguments.checkpoint, arguments.out, source=arguments.source)
        console.print(f"wrote {arguments.out}", markup=False)
        return 0
    if arguments.model is None:
        raise ValueError("say which detector the checkpoint is of: --model NAME (`recollect models` lists them)")
    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"--out {arguments.out}: weights are written as .safetensors")
    if is_backbone(arguments.model):
        notes = convert_backbone(arguments.checkpoint, arguments.model, arguments.out, source=arguments.source)
        count = "backbone"
    else:
        names = None if arguments.names is None else read_names(arguments.names)
        conversion = convert(
            arguments.checkpoint, arguments.model, source=arguments.source, coco91=arguments.coco91, names=names
        )
        conversion.save(arguments.out)
        notes, count = conversion.notes, f"{len(conversion.card['names'])} classes"
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"wrote {arguments.out}: {arguments.model}, {count}", markup=False, soft_wrap=True)
    return 0


def read_names(path: Path) -> list[str]:
    """Lines of a text file, without empty ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} holds no class name; write one per line")
    return names
