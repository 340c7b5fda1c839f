"""Pictures as uint8 RGB, upright, whatever the file holds; or a DataError that says why not."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from recollect.data.findings import DataError, Finding

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"}
ORIENTATION = 0x0112
# what damaged or hostile files have been seen to raise inside Pillow
PILLOW_FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    EOFError,
    MemoryError,
    AssertionError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    PillowImage.DecompressionBombError,
)


def read_image(path: str | Path) -> Tensor:
    """[3, H, W] uint8 RGB after EXIF rotation.

    JPEG is decoded by torchvision, everything else by Pillow: damaged PNG files crash torchvision 0.29. Alpha is
    dropped, palettes and CMYK become RGB, 16-bit values are divided by 256, of an animation the first frame counts.
    DataError naming the file if there is no such file, or no whole image in it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        kind = "file-missing" if isinstance(error, FileNotFoundError) else "file-unreadable"
        raise DataError(str(Finding(kind, str(path), "" if kind == "file-missing" else str(error)))) from error
    if not data:
        raise DataError(str(Finding("file-empty", str(path))))
    if data[:3] == b"\xff\xd8\xff":
        height, width = jpeg_size(data)
        if 0 < height * width <= MAX_PIXELS:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                image = decode_jpeg(buffer, mode=ImageReadMode.RGB)
                assert isinstance(image, Tensor)
                return _turned(image, _jpeg_orientation(data))
            except RuntimeError:
                pass  # Pillow has the last word on what is readable
    return _read_with_pillow(data, path)


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0" not in data[:65536]:
        return 1
    try:
        with PillowImage.open(io.BytesIO(data)) as image:
            return orientation(image)
    except PILLOW_FAULTS:
        return 1


def _turned(image: Tensor, turn: int) -> Tensor:
    """[3, H, W] as the EXIF orientation 1..8 says: 5 to 8 transpose, the others only mirror."""
    if turn >= 5:
        image = image.transpose(1, 2)
    mirrored = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(turn)
    return image if mirrored is None else image.flip(mirrored)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) as a JPEG's frame header gives them, before EXIF rotation; (0, 0) if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _read_with_pillow(data: bytes, path: str | Path) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(io.BytesIO(data)) as image:
                image.load()
                pixels = np.array(to_rgb(upright(image)))
    except PILLOW_FAULTS as error:
        kind = "file-truncated" if "truncated" in str(error) else "file-unreadable"
        raise DataError(str(Finding(kind, str(path), brief(error)))) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def upright(image: PillowImage.Image) -> PillowImage.Image:
    """The image turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image


def orientation(image: PillowImage.Image) -> int:
    """The EXIF orientation 1..8; 1, upright, if there is none or it makes no sense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except PILLOW_FAULTS:
        return 1
    return value if value in range(1, 9) else 1


def to_rgb(image: PillowImage.Image) -> PillowImage.Image:
    """An image of any mode as 8-bit RGB."""
    if image.mode.startswith("I;16"):
        return PillowImage.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        highest = float(values.max(initial=0))
        scale = 255.0 if image.mode == "F" and highest <= 1 else 1.0 if highest <= 255 else 1 / 256
        return PillowImage.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) after EXIF rotation, from the file's header alone; DataError if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(path) as image:
                width, height = image.size
                return (width, height) if orientation(image) >= 5 else (height, width)
    except FileNotFoundError as error:
        raise DataError(str(Finding("file-missing", str(path)))) from error
    except PILLOW_FAULTS as error:
        kind = "file-unreadable" if Path(path).is_file() and Path(path).stat().st_size else "file-empty"
        raise DataError(str(Finding(kind, str(path), brief(error)))) from error


def brief(error: BaseException) -> str:
    """The first line of an error, or nothing if it only says that this is no image."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "" if "cannot identify image file" in text else text[:200]
