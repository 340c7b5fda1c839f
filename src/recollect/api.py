"""The few verbs of the Python interface: `load`, `train`, `evaluate`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from recollect.convert.weights import model_from_weights
from recollect.data import (
    DetectionDataset,
    evaluation_loader,
    evaluation_transform,
    open_dataset,
    read_image,
    with_proposals,
)
from recollect.data.transforms import resized
from recollect.ops.masks import paste_masks
from recollect.recipe import Recipe
from recollect.registry import model_entry
from recollect.structures import Detections

if TYPE_CHECKING:
    from recollect.evaluation import CocoMetrics
    from recollect.training import Result

WEIGHTS = "weights.safetensors"
Picture = str | Path | Image.Image | np.ndarray | Tensor


class Detector:
    """A trained detector, ready to predict. Predicting is thread-safe.

    model: in evaluation mode, on its device. names: class names in label order. recipe: what it was trained by.
    card: everything its weights file says about itself.
    """

    def __init__(self, model: nn.Module, card: dict[str, Any], device: torch.device) -> None:
        self.model, self.card, self.device = model.eval().to(device), card, device
        self.names: tuple[str, ...] = tuple(card["names"])
        self.recipe = Recipe.from_json(card["recipe"])
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Detector({self.card['model']}, {len(self.names)} classes, on {self.device})"

    def predict(
        self, images: Picture | Sequence[Picture], threshold: float = 0.3, *, batch: int = 1
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in several, in their order.

        images: files, PIL images, arrays [H, W, 3] or [H, W] (uint8, RGB), tensors [3, H, W] (uint8, or float in
            0..1), or a list of such.
        threshold: only detections with at least this score. batch: images per pass, of any sizes.
        Boxes are in the pixels of each image as given. ValueError naming an image that cannot be read.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray) or (
            isinstance(images, Tensor) and images.ndim == 3
        ):
            return next(self.stream([images], threshold))  # type: ignore[list-item]
        return list(self.stream(images, threshold, batch=batch))  # type: ignore[arg-type]

    def stream(self, images: Any, threshold: float = 0.3, *, batch: int = 1) -> Iterator[Detections]:
        """Like `predict` for any iterable, in constant memory: one result after the other."""
        if batch < 1:
            raise ValueError(f"batch={batch}: give 1 or more")
        waiting: list[Picture] = []
        for image in images:
            waiting.append(image)
            if len(waiting) == batch:
                yield from self._predict(waiting, threshold)
                waiting = []
        if waiting:
            yield from self._predict(waiting, threshold)

    def _predict(self, pictures: Sequence[Picture], threshold: float) -> list[Detections]:
        originals = [to_tensor(picture) for picture in pictures]
        fed = [self.resize(image) for image in originals]
        with self._lock, torch.inference_mode(), self._precision():
            found = self.model([image.to(self.device) for image in fed])
        results = []
        for picture, original, image, one in zip(pictures, originals, fed, found):
            size = (int(original.shape[-2]), int(original.shape[-1]))
            keep = one["scores"].float().cpu() >= threshold
            scale = torch.tensor([size[1] / image.shape[-1], size[0] / image.shape[-2]]).repeat(2)
            masks = one.get("masks")
            if masks is not None:
                masks = _resize_masks(masks.cpu()[keep], size)
            elif "roi_masks" in one:  # only what passed the threshold becomes bitmaps
                masks = paste_masks(
                    one["roi_masks"].float().cpu()[keep], (one["boxes"].float().cpu() * scale)[keep], size
                )
            results.append(
                Detections(
                    boxes=(one["boxes"].float().cpu() * scale)[keep],
                    scores=one["scores"].float().cpu()[keep],
                    labels=one["labels"].cpu()[keep],
                    classes=self.names,
                    size=size,
                    masks=masks,
                    path=str(picture) if isinstance(picture, str | Path) else None,
                )
            )
        return results

    def resize(self, image: Tensor) -> Tensor:
        """An image at the size that the detector was trained for."""
        resize = self.recipe.data.resize
        size = resized((int(image.shape[-2]), int(image.shape[-1])), max(resize.short), resize.long)
        if size == tuple(image.shape[-2:]):
            return image
        from torchvision.transforms.v2 import functional as F

        return F.resize(image, list(size), antialias=True)

    def _precision(self) -> Any:
        use = self.device.type == "cuda" and self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=use)


def load(run: str | Path, device: str | torch.device | None = None) -> Detector:
    """The detector of a run folder or of a weights file, on a GPU if there is one.

    ValueError naming the file if it is missing, torn, or not written by recollect.
    """
    path = Path(run)
    if path.is_dir():
        if not (path / WEIGHTS).exists():
            raise ValueError(f"{path} holds no {WEIGHTS}: it is no run folder, or its training has not validated yet")
        path = path / WEIGHTS
    model, card = model_from_weights(path)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Detector(model, card, torch.device(device))


def train(model: str | None = None, data: str | Path | None = None, *, callbacks: Sequence[Any] = (),
          **options: Any) -> Result:  # fmt: skip
    """Train a detector on a dataset: `train("sqr_adamixer_r50", data="./birds", epochs=12)`.

    model: a name from `list_models()`. data: a dataset folder. options: the flags of `recollect train` with
    underscores (`recollect.training.options.Options` lists them); `recollection=Recollection(...)` is understood too.
    callbacks: Lightning callbacks. With `resume=RUN` neither model nor data is needed.
    Returns the folder, weights, time and metrics of the run; `load(result.folder)` gives the detector.
    """
    from recollect.training.options import Options

    return train_with(model, Options(data=None if data is None else str(data), **options), callbacks)


def train_with(model: str | None, options: Any, callbacks: Sequence[Any] = ()) -> Result:
    """`train` with its options as one record, as the command line has them."""
    from recollect.training import fit
    from recollect.training.options import MAY_CHANGE, OUT_VARIABLE, choose_folder
    from recollect.training.run import RUN_FILE, Settings

    source = options.source()
    if options.resume is not None:
        folder = Path(options.resume)
        if not (folder / RUN_FILE).exists():
            raise ValueError(f"{folder} is no run folder: it has no {RUN_FILE} to resume from")
        recipe = Recipe.load(folder / "recipe.json")
        fixed = sorted(set(options.given()) - MAY_CHANGE)
        if fixed or (model is not None and model != recipe.model):
            what = ", ".join(fixed) or f"the detector ({recipe.model})"
            raise ValueError(f"a resumed run goes on as it began: {what} cannot be changed; start a new run instead")
        described = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        source = {k: value or described["source"].get(k) for k, value in source.items()}
        changes = {k: v for k, v in options.given().items() if k in described["settings"]}
        settings = Settings.from_json({**described["settings"], **changes, "out": str(folder)})
    else:
        if model is None:
            raise ValueError("which detector? Give its name; `recollect models` lists them")
        recipe = options.recipe(model)
        if source["data"] is None:
            raise ValueError("which data? Give the folder with --data DIR")
        folder = choose_folder(None if options.out is None else Path(options.out))
        os.environ[OUT_VARIABLE] = str(folder)
        settings = options.settings(folder)
    try:
        kind = {"images": source["images"], "proposals": source["proposals"]}
        train_set = _open(source["data"], "train", masks=learns_masks(recipe), **kind)
        val_set = None
        if source["val"] != "none":
            val_set = _open(source["val"] or source["data"], "val", **kind)
        return fit(
            recipe, train_set, val_set, settings, resume=options.resume is not None, callbacks=callbacks, source=source
        )
    finally:
        os.environ.pop(OUT_VARIABLE, None)


def evaluate(
    run: str | Path | Detector,
    data: str | Path,
    *,
    split: str = "val",
    stages: bool = False,
    batch: int = 1,
    max_detections: int = 100,
    masks: bool = False,
    proposals: str | Path | None = None,
    device: str | None = None,
    progress: Any = None,
) -> CocoMetrics:
    """COCO metrics of a trained detector on a split of a dataset.

    stages: also of every decoder stage alone. max_detections: that count per image and class; where that is more than
    the detector keeps per image, it is made to keep as many. masks: score masks instead of boxes. proposals: for Fast
    R-CNN, a file of them. ValueError if the dataset's classes are not the detector's.
    """
    from recollect.evaluation import evaluate_model

    detector = run if isinstance(run, Detector) else load(run, device)
    if masks and not getattr(detector.model, "needs_masks", False):
        raise ValueError(f"{detector.card['model']} finds no masks; score its boxes, without masks=True (--masks)")
    dataset = _open(data, split, masks=masks, proposals=proposals)
    if tuple(dataset.names) != detector.names:
        raise ValueError(
            f"the detector knows {len(detector.names)} classes ({_some(detector.names)}), {data} has "
            f"{len(dataset.names)} ({_some(dataset.names)}): they must be the same, in the same order"
        )
    dataset = dataset.with_transform(evaluation_transform(detector.recipe.data))
    dataset.masks = False  # the truth holds them; decoding them image by image would be in vain
    loader = evaluation_loader(dataset, batch, workers=0 if detector.device.type == "cpu" else None)
    if getattr(detector.model, "num_detections", max_detections) < max_detections:
        detector.model.num_detections = max_detections  # type: ignore[assignment]
    return evaluate_model(
        detector.model, loader, dataset, device=detector.device, stages=stages, max_detections=max_detections,
        iou_type="segm" if masks else "bbox", progress=progress,
    )  # fmt: skip


def learns_masks(recipe: Recipe) -> bool:
    """Whether the recipe's detector learns instance masks, so that its targets must hold some."""
    return model_entry(recipe.model).masks or bool(recipe.options.get("masks"))


def _open(
    data: str | Path,
    split: str,
    *,
    images: str | Path | None = None,
    masks: bool = False,
    proposals: str | Path | None = None,
) -> DetectionDataset:
    dataset = open_dataset(data, split, images=images, masks=masks)
    return dataset if proposals is None else with_proposals(dataset, proposals)


def to_tensor(picture: Picture) -> Tensor:
    """Any kind of picture -> [3, H, W], uint8 or float in 0..1. ValueError for anything else."""
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        picture = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if isinstance(picture, np.ndarray):
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, 2)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"an array must be [H, W, 3] or [H, W] uint8, found {picture.shape} {picture.dtype}")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # a copy: arrays may be read-only
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(f"a tensor must be [3, H, W], found {tuple(picture.shape)}")
        return picture
    raise ValueError(f"an image is a file, a PIL image, an array or a tensor, not {type(picture).__name__}")


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if len(masks) and tuple(masks.shape[-2:]) != size:
        masks = torch.nn.functional.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)[
            :, 0
        ]
    return masks if masks.dtype == torch.bool else masks > 0.5


def _some(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
