"""Folders of images with a stated preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qcompile.data import ImageFolder, Preprocessing, load_batches
from qcompile.errors import DataError, UsageError
from qcompile.ir import BATCH, Input, TensorType

PLAIN = Preprocessing((0.0,), (1.0,))


def port(channels: int = 3, h: int = 6, w: int = 8) -> list[Input]:
    return [Input("x", TensorType((BATCH, channels, h, w), "f32"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(6):
        sub = tmp_path / "images" / f"class{i // 3}"
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).save(sub / f"{i}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def pixels(folder: Path, i: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"class{i // 3}" / f"{i}.png"), np.float32)


def test_pixels_as_they_are(folder: Path) -> None:
    data = load_batches(ImageFolder(folder, PLAIN), port(), batch_size=4)
    assert (len(data), data.has_labels, data.name) == (6, False, "images")
    expected = np.stack([pixels(folder, i).transpose(2, 0, 1) for i in range(6)])
    np.testing.assert_array_equal(data.arrays()["x"], expected)
    np.testing.assert_array_equal(data.part(4, 6).arrays()["x"], expected[4:])


def test_mean_std_and_channel_order(folder: Path) -> None:
    how = Preprocessing((100.0, 110.0, 120.0), (2.0, 4.0, 8.0), bgr=True)
    data = load_batches(ImageFolder(folder, how), port()).arrays()["x"]
    expected = (pixels(folder, 2)[..., ::-1] - [100, 110, 120]) / [2, 4, 8]
    np.testing.assert_allclose(data[2], expected.transpose(2, 0, 1), rtol=1e-6)


def test_resize_and_crop(folder: Path) -> None:
    how = Preprocessing((0.0,), (1.0,), resize=(12, 10), crop=(6, 8))
    data = load_batches(ImageFolder(folder, how), port()).arrays()["x"]
    image = Image.open(folder / "class0" / "0.png").resize((10, 12), Image.Resampling.BILINEAR)
    expected = np.asarray(image, np.float32)[3:9, 1:9]
    np.testing.assert_array_equal(data[0], expected.transpose(2, 0, 1))


def test_grey(folder: Path) -> None:
    data = load_batches(ImageFolder(folder, PLAIN), port(1)).arrays()["x"]
    expected = np.asarray(Image.open(folder / "class0" / "0.png").convert("L"), np.float32)
    np.testing.assert_array_equal(data[0, 0], expected)
    with pytest.raises(UsageError, match="the model takes 1 channel"):
        load_batches(ImageFolder(folder, Preprocessing((1.0, 2.0, 3.0), (1.0,))), port(1))


def test_fewer_images_come_from_all_over_the_folder(folder: Path) -> None:
    data = load_batches(ImageFolder(folder, PLAIN), port(), limit=2).arrays()["x"]
    np.testing.assert_array_equal(data[0], pixels(folder, 0).transpose(2, 0, 1))
    np.testing.assert_array_equal(data[1], pixels(folder, 3).transpose(2, 0, 1))


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png: expected x float32\(N,3,7,7\), found float32\(1,3,6,8\)"):
        load_batches(ImageFolder(folder, PLAIN), port(3, 7, 7))
    with pytest.raises(DataError, match="is 6x8 pixels, smaller than the crop 9x9"):
        load_batches(ImageFolder(folder, Preprocessing((0.0,), (1.0,), crop=(9, 9))), port())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_batches(ImageFolder(tmp_path / "empty", PLAIN), port())
    with pytest.raises(DataError, match="no such folder"):
        load_batches(ImageFolder(tmp_path / "none", PLAIN), port())
    with pytest.raises(DataError, match="fits models with one input of 1 or 3 channels only"):
        load_batches(ImageFolder(folder, PLAIN), port(5))
    (folder / "class1" / "5.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"5\.png is not a readable image"):
        load_batches(ImageFolder(folder, PLAIN), port()).arrays()
    for mean, std in (((1.0, 2.0), (1.0,)), ((0.0,), (0.0,)), ((float("nan"),), (1.0,))):
        with pytest.raises(UsageError):
            Preprocessing(mean, std)
