"""ONNX: the whole detector, normalisation and NMS included, and the run that verifies it.

The file takes `image` [3, H, W] uint8 of one fixed size and gives `boxes` [n, 4] xyxy in its pixels, `scores` [n]
descending and `labels` [n], as the detector does, and `roi_masks` [n, M, M] from a detector that has mask heads. It
exists under its name only once onnxruntime has found with it, on the images given, what torch finds.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OUTPUTS = ("boxes", "scores", "labels")


class ExportError(ValueError):
    """A detector that cannot be exported, or whose exported form finds something else."""


def outputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of what the exported file gives."""
    return (*OUTPUTS, "roi_masks") if getattr(model, "needs_masks", False) else OUTPUTS


class _OneImage(nn.Module):
    """What is exported: one image in, three or four tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.model([image])[0]
        return tuple(found[name] for name in outputs_of(self.model))


def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: Sequence[Tensor],
    *,
    names: Sequence[str] = (),
    opset: int = 17,
    pixels: float = 0.05,
    score: float = 1e-3,
) -> dict[str, float]:
    """Write `model` to `path` and verify it on `images`, which should be real ones: noise decides nothing.

    images: [3, H, W] uint8, all of the size that the file will take. names: of the classes, kept in its metadata.
    pixels, score: how far a box and a score may differ between torch and onnxruntime, both in float32.
    Returns what was measured: detections compared, and the largest deviation of boxes and scores.
    ExportError if the images do not serve, if nothing is found in any of them, or if the two disagree; no file then.
    """
    onnx, runtime = _libraries()
    path = Path(path)
    _check_images(images)
    model = model.eval().float().cpu()
    unverified = path.with_name(path.name + ".unverified")
    try:
        _write(model, unverified, images[0], opset)
        graph = onnx.load(str(unverified))
        height, width = images[0].shape[1:]
        onnx.helper.set_model_props(graph, {"names": json.dumps(list(names)), "size": json.dumps([height, width])})
        onnx.checker.check_model(graph)
        onnx.save(graph, str(unverified))
        session = runtime.InferenceSession(str(unverified), providers=["CPUExecutionProvider"])
        measured = _verify(model, session, images, pixels, score)
        unverified.replace(path)
    finally:
        unverified.unlink(missing_ok=True)
    return measured


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"export needs {error.name}: pip install 'recollect[onnx]'") from error
    return onnx, onnxruntime


def _check_images(images: Sequence[Tensor]) -> None:
    if not len(images):
        raise ExportError("give at least one image: an export that was not verified on one is not done")
    for place, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.shape != images[0].shape:
            raise ExportError(
                f"image {place} is {tuple(image.shape)} {image.dtype}: all must be uint8 and of one size, "
                f"here [3, {images[0].shape[-2]}, {images[0].shape[-1]}]"
            )


def _write(model: nn.Module, path: Path, image: Tensor, opset: int) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # Sizes become constants, which is meant: the file is for images of one size.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _OneImage(model).eval(),
                (image,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                output_names=list(outputs_of(model)),
                dynamic_axes={name: {0: "detections"} for name in outputs_of(model)},
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(f"torch cannot write this detector as ONNX: {str(error).strip()[:500]}") from error


def _verify(model: nn.Module, session: Any, images: Sequence[Tensor], pixels: float, score: float) -> dict[str, float]:
    """Run both on every image; every detection must have its partner."""
    compared, worst_box, worst_score = 0, 0.0, 0.0
    for place, image in enumerate(images):
        with torch.no_grad():
            expected = model([image])[0]
        outputs = list(outputs_of(model))
        found = dict(zip(outputs, map(torch.from_numpy, session.run(outputs, {"image": image.numpy()}))))
        ours, theirs = len(expected["scores"]), len(found["scores"])
        if ours != theirs:
            raise ExportError(f"image {place}: torch finds {ours} objects, the exported file {theirs}")
        free = torch.ones(theirs, dtype=torch.bool)
        for index, (box, value, label) in enumerate(zip(expected["boxes"], expected["scores"], expected["labels"])):
            # Not by rank: two almost equal scores may change places.
            apart = (found["boxes"] - box).abs().amax(1)
            off = (found["scores"] - value).abs()
            fits = free & (found["labels"] == label) & (apart <= pixels) & (off <= score)
            if not fits.any():
                raise ExportError(
                    f"image {place}: torch finds label {int(label)} with score {float(value):.4f} at "
                    f"{[round(x, 2) for x in box.tolist()]}, the exported file nothing within {pixels} px and {score}"
                )
            partner = torch.where(fits, apart, torch.inf).argmin()
            free[partner] = False
            if "roi_masks" in outputs:
                moved = (found["roi_masks"][partner] - expected["roi_masks"][index]).abs().max()
                if moved > 10 * score:
                    raise ExportError(
                        f"image {place}: the mask of detection {index} differs by {float(moved):.4f} in probability "
                        f"between torch and the exported file, more than {10 * score}"
                    )
            worst_box, worst_score = max(worst_box, float(apart[partner])), max(worst_score, float(off[partner]))
        compared += ours
    if not compared:
        raise ExportError(
            "the detector finds nothing in the images given, so nothing was verified: give images that hold objects"
        )
    return {"detections": compared, "pixels": worst_box, "score": worst_score}
