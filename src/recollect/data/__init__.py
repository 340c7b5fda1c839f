"""Datasets: opened by looking at them, checked before the first step, fed as uint8 images with targets."""

from recollect.data.browse import browse
from recollect.data.classes import match_names
from recollect.data.conversion import convert_dataset
from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError, Finding
from recollect.data.images import image_size, read_image
from recollect.data.loading import choose_workers, collate, evaluation_loader, training_loader
from recollect.data.opening import open_dataset
from recollect.data.proposals import with_proposals, write_proposals
from recollect.data.sampling import concatenate, epoch_order, only_classes, repeat_rare, shapes, take
from recollect.data.transforms import evaluation_transform, training_transform

__all__ = [
    "DataError",
    "DetectionDataset",
    "Finding",
    "browse",
    "choose_workers",
    "collate",
    "concatenate",
    "convert_dataset",
    "epoch_order",
    "evaluation_loader",
    "evaluation_transform",
    "image_size",
    "match_names",
    "only_classes",
    "open_dataset",
    "read_image",
    "repeat_rare",
    "shapes",
    "take",
    "training_loader",
    "training_transform",
    "with_proposals",
    "write_proposals",
]
