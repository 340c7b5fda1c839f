"""Names of transformer blocks that several projects share."""

from __future__ import annotations

from recollect.convert.rules import Rule


def mlp(theirs: str, ours: str, layers: int, **more: tuple[str, ...]) -> tuple[Rule, ...]:
    """Linear layers numbered 0, 1, 2 of theirs are 0, 2, 4 of ours, ReLUs between. copies: their names once more."""
    copies = more.get("copies", ())
    return tuple(
        Rule(f"{theirs}.{i}.*", f"{ours}.{2 * i}.*", copies=tuple(f"{copy}.{i}.*" for copy in copies))
        for i in range(layers)
    )


def mmdet_feed_forward(theirs: str, ours: str, norm: int, prelu: bool = False, block: str = "ffns.0") -> list[Rule]:
    """mmcv's FFN and the norm after it. block: "ffns.0" in MMDetection 2.x and detrex, "ffn" in 3.x."""
    rules = [
        Rule(f"{theirs}.{block}.layers.0.0.*", f"{ours}.feedforward.linear1.*"),
        Rule(f"{theirs}.{block}.layers.1.*", f"{ours}.feedforward.linear2.*"),
        Rule(f"{theirs}.norms.{norm}.*", f"{ours}.feedforward.norm.*"),
    ]
    if prelu:  # one module, registered twice
        copies = (f"{theirs}.{block}.layers.0.1.weight",)
        rules.append(
            Rule(f"{theirs}.{block}.activation.weight", f"{ours}.feedforward.activation.weight", copies=copies)
        )
    return rules


def detr_feed_forward(theirs: str, ours: str, norm: int, prelu: bool = False) -> list[Rule]:
    """The feed-forward of facebookresearch/detr and what grew from it, and the norm after it."""
    rules = [Rule(f"{theirs}.linear{i}.*", f"{ours}.feedforward.linear{i}.*") for i in (1, 2)]
    rules.append(Rule(f"{theirs}.norm{norm}.*", f"{ours}.feedforward.norm.*"))
    if prelu:
        rules.append(Rule(f"{theirs}.activation.weight", f"{ours}.feedforward.activation.weight"))
    return rules
