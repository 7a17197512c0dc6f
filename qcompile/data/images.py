"""Folders of images, with a stated preprocessing.  Pillow is imported on first use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompile.data.check import Header, as_float32, check_headers
from qcompile.errors import DataError, InstallError, UsageError
from qcompile.ir import Array, Input

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"})


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a decoded image becomes a model input: resize, then crop the centre, then (x − mean) / std.

    Attributes:
        mean, std: one number, or one per channel in the order the model takes them; pixels are 0..255.
        resize: (height, width) in pixels, bilinear, the aspect ratio is not kept; None leaves the size.
        crop: (height, width) in pixels, cut from the centre; None cuts nothing.
        bgr: the model takes blue, green, red instead of red, green, blue.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    bgr: bool = False

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or not np.isfinite(values).all():
                raise UsageError(f"the images' {name} takes one number or three, not {values}")
        if 0 in self.std:
            raise UsageError("the images' std must not be 0")
        for size in (self.resize, self.crop):
            if size is not None and min(size) < 1:
                raise UsageError(f"an image size must be positive, not {size[0]}x{size[1]}")


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of images (searched recursively) and what to do with each."""

    path: Path
    preprocessing: Preprocessing


class ImageSource:
    """The images of a folder in the order of their paths, decoded when they are asked for; no labels."""

    def __init__(self, folder: ImageFolder, inputs: Sequence[Input], limit: int | None) -> None:
        self.folder = folder
        if not folder.path.is_dir():
            raise DataError(f"no such folder: {folder.path}")
        if len(inputs) != 1 or len(inputs[0].type.sample) != 3 or inputs[0].type.sample[0] not in (1, 3):
            raise DataError(
                "a folder of images fits models with one input of 1 or 3 channels only",
                hint="give an .npz with one array per model input",
            )
        self.input = inputs[0]
        found = sorted(p for p in folder.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise DataError(f"{folder.path} holds no images ({', '.join(sorted(SUFFIXES))})")
        # Folders are often sorted by class, so fewer images are taken from all over the folder.
        keep = len(found) if limit is None else min(limit, len(found))
        self.files = [found[i * len(found) // keep] for i in range(keep)]
        first = self._decode(self.files[0])
        self._check(first, self.files[0])
        self.headers = {self.input.name: Header((keep, *first.shape), first.dtype)}

    def _check(self, image: Array, file: Path) -> None:
        check_headers({self.input.name: Header((1, *image.shape), image.dtype)}, [self.input], str(file))

    def rows(self, start: int, stop: int, step: int) -> Iterator[dict[str, Array]]:
        """Images start to stop as (n, C, H, W) float32, `step` at a time.

        Raises:
            DataError: an image cannot be decoded or has another size than the first.
        """
        for first in range(start, stop, step):
            images = []
            for file in self.files[first : min(first + step, stop)]:
                image = self._decode(file)
                self._check(image, file)
                images.append(image)
            yield {self.input.name: np.stack(images)}

    def _decode(self, file: Path) -> Array:
        """(C, H, W) float32."""
        try:
            from PIL import Image
        except ImportError as error:
            raise InstallError("reading images needs Pillow", hint="pip install 'qcompile[images]'") from error
        how, channels = self.folder.preprocessing, self.input.type.sample[0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file) as opened:
                    image = opened.convert("RGB" if channels == 3 else "L")
            if how.resize is not None:
                image = image.resize((how.resize[1], how.resize[0]), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
            raise DataError(f"{file} is not a readable image: {error}") from error
        pixels: Array = np.asarray(image, np.float32).reshape(image.height, image.width, channels)
        pixels = _centre(pixels, how.crop, file)
        if how.bgr:
            pixels = pixels[..., ::-1]
        values = (pixels - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
        if values.shape[2] != channels:
            raise UsageError(f"the model takes {channels} channel: give one number as the images' mean and std")
        return as_float32(self.input.name, values.transpose(2, 0, 1), str(file), 0)


def _centre(pixels: Array, crop: tuple[int, int] | None, file: Path) -> Array:
    if crop is None:
        return pixels
    top, left = (pixels.shape[0] - crop[0]) // 2, (pixels.shape[1] - crop[1]) // 2
    if top < 0 or left < 0:
        size = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise DataError(f"{file} is {size} pixels, smaller than the crop {crop[0]}x{crop[1]}")
    return pixels[top : top + crop[0], left : left + crop[1]]
