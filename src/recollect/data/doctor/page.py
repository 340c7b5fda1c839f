"""`--html`: one self-contained page with the findings, statistics, and pictures of the worst."""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from recollect.data.annotations import Annotations
from recollect.data.doctor.examination import Report
from recollect.data.findings import KINDS, DataError, Finding
from recollect.data.images import read_image

PICTURES = 24  # at most on the page
PER_KIND = 3
SIDE = 300  # of a picture, in pixels
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{margin-top:2.2rem;border-bottom:1px solid #ddd}table{border-collapse:collapse;width:100%}
td,th{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #eee;vertical-align:top}
.error{color:#b00020}.warning{color:#a15c00}.note{color:#456}figure{display:inline-block;margin:.5rem;width:300px;
vertical-align:top}figcaption{font-size:12px;overflow-wrap:anywhere}svg{margin:.5rem 1rem .5rem 0}
.charts{display:flex;flex-wrap:wrap}h3{margin:.6rem 0 0;font-size:14px}code{overflow-wrap:anywhere}
"""


def write_page(report: Report, file: str | Path) -> None:
    """Write the page; everything is inside the one file."""
    parts = [f"<h1>Dataset {escape(report.path)}</h1>"]
    parts.append("<p>" + ", ".join(f"<b class={s}>{n} {s}s</b>" for s, n in report.counts().items()) + "</p>")
    parts.append(_table(report))
    for split, table in report.splits.items():
        parts.append(f"<h2>{escape(split)}: {len(table)} images, {table.num_objects} objects</h2>")
        parts.append(_charts(table))
    parts.append("<h2>The worst findings</h2>" + "".join(_pictures(report)))
    body = "\n".join(parts)
    title = f"<title>{escape(report.path)}</title>"
    Path(file).write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8>{title}<style>{STYLE}</style><body>{body}</body></html>\n",
        encoding="utf-8",
    )


def _table(report: Report) -> str:
    rows = []
    for kind, findings in report.by_kind().items():
        about = KINDS[kind]
        examples = "<br>".join(f"<code>{escape(f.file)}</code> {escape(f.value)}" for f in findings[:3])
        count = sum(f.count for f in findings)
        rows.append(
            f"<tr><td class={about.severity}>{about.severity}<td>{count}<td>{escape(about.title)}<br>"
            f"<small>{escape(about.remedy)}</small><td><small>{examples}</small>"
        )
    return "<table><tr><th>severity<th>count<th>what, and what to do<th>for example" + "".join(rows) + "</table>"


def _charts(table: Annotations) -> str:
    counts = np.bincount(table.labels, minlength=len(table.names))
    order = np.argsort(-counts, kind="stable")[:40]
    classes = _bars([table.names[i] for i in order], counts[order].tolist(), horizontal=True)
    per_image = np.diff(table.offsets)
    boxes = table.boxes[np.isfinite(table.boxes).all(1) & (table.boxes[:, 2:] > 0).all(1)]
    side = np.sqrt(boxes[:, 2:].prod(1))
    edges = [0, 8, 16, 32, 64, 96, 128, 256, 512, 1024, np.inf]
    sizes = np.histogram(side, edges)[0].tolist()
    labels = [f"{edges[i]}-{edges[i + 1]}" if i < len(edges) - 2 else f"{edges[i]}+" for i in range(len(edges) - 1)]
    steps = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 10**9]
    crowding = np.histogram(per_image, steps)[0].tolist()
    names = [str(a) if b - a == 1 else f"{a}-{b - 1}" if b < 10**9 else f"{a}+" for a, b in pairwise(steps)]
    charts = {
        "objects per class": classes,
        "box size: square root of the area, in pixels": _bars(labels, sizes),
        "objects per image": _bars(names, crowding),
        "where box centres lie": _positions(table),
    }
    return "<div class=charts>" + "".join(f"<div><h3>{t}</h3>{svg}</div>" for t, svg in charts.items()) + "</div>"


def _bars(labels: list[str], values: list[int], *, horizontal: bool = False) -> str:
    """A bar chart as SVG."""
    most = max([*values, 1])
    parts = []
    if horizontal:
        for i, (label, value) in enumerate(zip(labels, values)):
            y = 18 * i
            parts.append(f"<text x=115 y={y + 13} text-anchor=end font-size=11>{escape(label[:18])}</text>")
            parts.append(f"<rect x=120 y={y + 2} width={250 * value / most:.1f} height=14 fill=#47a />")
            parts.append(f"<text x={125 + 250 * value / most:.1f} y={y + 13} font-size=11>{value}</text>")
        return f"<svg width=440 height={18 * len(labels) + 4}>{''.join(parts)}</svg>"
    for i, (label, value) in enumerate(zip(labels, values)):
        x, height = 38 * i + 4, 110 * value / most
        parts.append(f"<rect x={x} y={125 - height:.1f} width=32 height={height:.1f} fill=#47a />")
        parts.append(f"<text x={x + 16} y={121 - height:.1f} text-anchor=middle font-size=10>{value}</text>")
        parts.append(f"<text x={x + 16} y=138 text-anchor=middle font-size=9>{escape(label)}</text>")
    return f"<svg width={38 * len(labels) + 8} height=142>{''.join(parts)}</svg>"


def _positions(table: Annotations, cells: int = 16) -> str:
    """How often box centres fall into each part of the image, as SVG."""
    owner = table.images_of_rows()
    width, height = table.widths[owner], table.heights[owner]
    known = (width > 0) & (height > 0) & np.isfinite(table.boxes).all(1)
    if not known.any():
        return "<p>image sizes are not known</p>"
    centre = table.boxes[known, :2] + table.boxes[known, 2:] / 2
    x, y = centre[:, 0] / width[known], centre[:, 1] / height[known]
    grid = np.histogram2d(y.clip(0, 1), x.clip(0, 1), bins=cells, range=[[0, 1], [0, 1]])[0]
    shade = grid / max(1.0, grid.max())
    side = 10
    squares = [
        f"<rect x={c * side} y={r * side} width={side} height={side} fill=#47a fill-opacity={shade[r, c]:.2f} />"
        for r in range(cells)
        for c in range(cells)
    ]
    size = cells * side
    return f"<svg width={size} height={size} style='border:1px solid #ccc'>{''.join(squares)}</svg>"


def _pictures(report: Report) -> list[str]:
    """A few pictures per kind, the worst kinds first; only kinds that can be seen."""
    figures = []
    for findings in report.by_kind().values():
        shown = 0
        for finding in findings:
            if shown == PER_KIND or len(figures) == PICTURES:
                break
            if finding.image is None or finding.split not in report.splits:
                continue
            picture = _picture(report.splits[finding.split], finding)
            if picture:
                about = KINDS[finding.kind]
                caption = f"<b class={about.severity}>{escape(about.title)}</b> {escape(finding.value)}"
                figures.append(f"<figure><img src='{picture}'><figcaption>{caption}</figcaption></figure>")
                shown += 1
    return figures or ["<p>None that a picture could show.</p>"]


def _picture(table: Annotations, finding: Finding) -> str:
    """The image with all its boxes, the one at fault in red, as a data URL; "" if it cannot be read."""
    assert finding.image is not None
    try:
        pixels = read_image(table.path(finding.image))
    except DataError:
        return ""
    image = PillowImage.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    rows = table.rows(finding.image)
    for row in sorted(range(rows.start, rows.stop), key=lambda r: r == finding.row):
        if np.isfinite(table.boxes[row]).all():
            x, y, w, h = (float(v) for v in (table.boxes[row] * scale).clip(-1e4, 1e4))
            corners = (min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h))
            bad = row == finding.row
            if bad:  # so that even a box without extent is seen
                corners = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
            pen.rectangle(corners, outline="#ff0033" if bad else "#66ddff", width=2 if bad else 1)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
