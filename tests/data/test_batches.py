"""Data files become batches, or a message that names what was expected and what was given."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.data import Dataset, check_arrays, load_batches, split_holdout
from qcompile.data.npz import npz_bytes
from qcompile.errors import DataError
from qcompile.ir import BATCH, Grid, Input, TensorType

IMAGE = [Input("input", TensorType((BATCH, 3, 4, 5), "f32"))]
TWO = [Input("a", TensorType((BATCH, 2), "f32")), Input("b", TensorType((BATCH, 3), "f32"))]


def images(n: int = 10, dtype: Any = np.float32) -> Any:
    return np.arange(n * 60).reshape(n, 3, 4, 5).astype(dtype)


def save(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_in_batches(tmp_path: Path, compressed: bool) -> None:
    path = save(tmp_path / "d.npz", compressed, input=images(), labels=np.arange(10))
    data = load_batches(path, IMAGE, batch_size=4)
    assert (len(data), data.has_labels, data.name) == (10, True, "d.npz")
    for _ in range(2):  # streams again
        batches = list(data())
        assert [len(b["input"]) for b in batches] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([b["input"] for b in batches]), images())
        np.testing.assert_array_equal(np.concatenate([b["labels"] for b in batches]), np.arange(10))
    part = data.part(3, 9)
    np.testing.assert_array_equal(part.arrays()["input"], images()[3:9])
    np.testing.assert_array_equal(part.part(2, 4).arrays()["labels"], [5, 6])
    assert len(load_batches(path, IMAGE, limit=7)) == 7
    assert len(load_batches(path, IMAGE, limit=70)) == 10


def test_the_level_of_the_graph_does_not_matter(tmp_path: Path) -> None:
    port = Input("input", TensorType((BATCH, 3, 4, 5), "u8"), Grid(0.1, 3, "u8"))
    assert load_batches({"input": images()}, [port]).arrays()["input"].dtype == np.float32


def test_other_floats_are_converted(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float64):
        data = load_batches(save(tmp_path / "d.npz", input=images(3, dtype)), IMAGE)
        assert data.arrays()["input"].dtype == np.float32


def test_every_source_gives_the_same() -> None:
    x, labels = images(), np.arange(10)

    def batches() -> Iterator[Any]:
        for i in range(0, 10, 3):
            yield x[i : i + 3], labels[i : i + 3]

    sources: list[Any] = [
        {"input": x, "labels": labels},
        batches,
        batches(),
        [{"input": x[:6], "labels": labels[:6]}, {"input": x[6:], "labels": labels[6:]}],
    ]
    for source in sources:
        data = load_batches(source, IMAGE, batch_size=2, limit=8)
        assert len(data) == 8
        np.testing.assert_array_equal(data.arrays()["input"], x[:8])
        np.testing.assert_array_equal(data.part(3, 8).arrays()["labels"], labels[3:8])
    plain = load_batches([x[:5], x[5:]], IMAGE)
    assert not plain.has_labels
    np.testing.assert_array_equal(plain.arrays()["input"], x)


def test_several_inputs() -> None:
    data = load_batches({"a": np.ones((4, 2), np.float32), "b": np.zeros((4, 3), np.float32)}, TWO)
    assert {k: v.shape for k, v in data.arrays().items()} == {"a": (4, 2), "b": (4, 3)}
    with pytest.raises(DataError) as caught:
        load_batches([np.ones((4, 2), np.float32)], TWO)
    assert str(caught.value) == "batch 0: expected a dict of the arrays a, b, found ndarray"


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"x": images()},
        "d.npz: expected the arrays input, found x\n  hint: name each array as the model names its input",
    ),
    (
        {"labels": np.arange(3)},
        "d.npz: expected the arrays input, found none\n  hint: name each array as the model names its input",
    ),
    (
        {"input": images(), "extra": np.ones(10)},
        "d.npz: expected the arrays input, found extra, input\n"
        "  hint: leave out arrays that are not inputs of the model",
    ),
    (
        {"input": images(), "y": np.arange(10)},
        "d.npz: expected the arrays input, found input, y\n  hint: name the labels `labels`",
    ),
    (
        {"input": images(10, np.uint8)},
        "d.npz: expected input float32(N,3,4,5), found uint8(10,3,4,5)\n"
        "  hint: give the values the float model takes, after its preprocessing, as float32",
    ),
    (
        {"input": images()[0]},
        "d.npz: expected input float32(N,3,4,5), found float32(3,4,5)\n"
        "  hint: put the samples first: one sample has the shape (1, 3, 4, 5)",
    ),
    (
        {"input": images().transpose(0, 2, 3, 1).copy()},
        "d.npz: expected input float32(N,3,4,5), found float32(10,4,5,3)\n"
        "  hint: the channels come second (NCHW): x.transpose(0, 3, 1, 2)",
    ),
    ({"input": np.ones((2, 7), np.float32)}, "d.npz: expected input float32(N,3,4,5), found float32(2,7)"),
    ({"input": np.float32(3)}, "d.npz: expected input float32(N,3,4,5), found float32()"),
    (
        {"input": images(), "labels": np.arange(9)},
        "d.npz: the arrays have different numbers of samples: input 10, labels 9",
    ),
    ({"input": images(), "labels": np.array(["cat"] * 10)}, "d.npz: `labels` must be numbers, not str96"),
    ({"input": images(0)}, "d.npz holds no samples"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_batches(save(tmp_path / "d.npz", **arrays), IMAGE)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    x = images(10, np.float64)
    x[7, 1, 2, 3] = value
    for source in (save(tmp_path / "d.npz", input=x), {"input": x}, lambda: [x[:4], x[4:]]):
        with pytest.raises(DataError, match="input holds NaN or infinity, first in sample 7"):
            load_batches(source, IMAGE, batch_size=3)
    with pytest.raises(DataError, match="the inputs: input holds NaN or infinity, first in sample 7"):
        check_arrays({"input": x}, IMAGE, "the inputs")


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*none\.npz"):
        load_batches(tmp_path / "none.npz", IMAGE)
    good = save(tmp_path / "d.npz", input=images()).read_bytes()
    for damaged in (b"", b"hello", good[:100], good[:-200], good[:300] + b"\xff" * 40 + good[340:]):
        path = tmp_path / "bad.npz"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.npz"):
            load_batches(path, IMAGE)
    np.save(tmp_path / "x.npy", images())
    with pytest.raises(DataError, match=r"x\.npy is not a readable \.npz file: File is not a zip file"):
        load_batches(tmp_path / "x.npy", IMAGE)
    with pytest.raises(DataError, match="is a folder: state how its images become inputs"):
        load_batches(tmp_path, IMAGE)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=np.array([print, 2], dtype=object))
    with pytest.raises(DataError, match="input holds pickled objects, which are never loaded"):
        load_batches(tmp_path / "d.npz", IMAGE)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    body = io.BytesIO()
    np.lib.format.write_array_header_1_0(body, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3, 4, 5)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("input.npy", body.getvalue() + b"\0" * 100)
    with pytest.raises(DataError, match="not a readable"):
        load_batches(tmp_path / "d.npz", IMAGE)


def test_fortran_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stored in Fortran order"):
        load_batches(save(tmp_path / "d.npz", input=np.asfortranarray(images())), IMAGE)


def test_sources_that_give_nothing() -> None:
    for source in ([], list):
        with pytest.raises(DataError, match="gave no batches"):
            load_batches(source, IMAGE)
    with pytest.raises(DataError, match="cannot read data from int"):
        load_batches(3, IMAGE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 1"):
        load_batches({"input": images()}, IMAGE, limit=0)


def test_a_callable_that_runs_dry() -> None:
    left = [3]

    def once() -> Iterator[Any]:
        while left[0]:
            left[0] -= 1
            yield images(2)

    with pytest.raises(DataError, match="the callable gave 0 samples, fewer than the first time"):
        load_batches(once, IMAGE)


def test_holdout_is_the_last_quarter(caplog: pytest.LogCaptureFixture) -> None:
    data = load_batches({"input": images(40), "labels": np.arange(40)}, IMAGE)
    fit, held = split_holdout(data)
    np.testing.assert_array_equal(fit.arrays()["labels"], np.arange(30))
    np.testing.assert_array_equal(held.arrays()["labels"], np.arange(30, 40))
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        few = load_batches({"input": images(31)}, IMAGE)
        assert split_holdout(few) == (few, few)
    assert "only 31 samples" in caplog.text
    assert isinstance(few, Dataset)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    port = [Input("input", TensorType((BATCH, 1000), "f32"))]
    peaks = []
    for n in (200, 6400):
        save(tmp_path / "d.npz", input=np.zeros((n, 1000), np.float32))
        tracemalloc.start()
        load_batches(tmp_path / "d.npz", port, batch_size=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_npz_bytes_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3), "a/x": np.ones((2, 2), np.float32)}
    data = npz_bytes(arrays)
    assert data == npz_bytes(dict(reversed(arrays.items())))
    (tmp_path / "d.npz").write_bytes(data)
    with np.load(tmp_path / "d.npz") as z:
        assert sorted(z.files) == ["a/x", "b"]
        np.testing.assert_array_equal(z["a/x"], arrays["a/x"])
    with zipfile.ZipFile(tmp_path / "d.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
