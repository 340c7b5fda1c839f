"""Datasets: opened by looking at them, checked before the first step, fed as uint8 images with targets."""

from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError, Finding
from recollect.data.images import image_size, read_image
from recollect.data.loading import choose_workers, collate, evaluation_loader, training_loader
from recollect.data.opening import open_dataset
from recollect.data.transforms import evaluation_transform, training_transform

__all__ = [
    "DataError",
    "DetectionDataset",
    "Finding",
    "choose_workers",
    "collate",
    "evaluation_loader",
    "evaluation_transform",
    "image_size",
    "open_dataset",
    "read_image",
    "training_loader",
    "training_transform",
]
