"""Which machine code a GPU takes, and what is kept between compilations."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.errors import DeviceError
from targets.cuda import images, share
from targets.cuda.build import Image
from targets.cuda.image_cache import ImageCache

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90")


def packed() -> tuple[bytes, list[dict[str, object]]]:
    made = {a: {"k": Image(f"code {a}".encode(), f"ptx {a}".encode())} for a in ARCHITECTURES}
    return images.pack(made)


@pytest.mark.parametrize(
    ("device", "image"),
    [
        ("sm_75", b"code sm_75"), ("sm_80", b"code sm_80"), ("sm_86", b"code sm_86"), ("sm_87", b"code sm_86"),
        ("sm_89", b"code sm_86"), ("sm_90", b"code sm_90"), ("sm_100", b"ptx sm_90\0"), ("sm_120", b"ptx sm_90\0"),
    ],
)  # fmt: skip
def test_device_takes_its_generation(device: str, image: bytes) -> None:
    assert images.choose(*packed(), device) == [(image, ["k"])]


def test_device_older_than_all() -> None:
    with pytest.raises(DeviceError, match="sm_70"):
        images.choose(*packed(), "sm_70")


def test_shared_images_are_stored_once() -> None:
    image = Image(b"code", b"ptx")
    blob, described = images.pack({"sm_80": {"a": image, "b": image}})
    assert blob == b"codeptx" and described[0]["kernels"] == ["a", "b"]


def template(body: str) -> str:
    return f"void {share.NAME}({share.parameters('int *x')}) {{ {body} }} // {share.arguments('x')}"


def test_texts_that_differ_in_numbers_are_one_kernel() -> None:
    def text(zero: int, limit: int) -> str:
        z, n = share.marked(zero, "int32"), share.marked(limit, "int64")
        return template(f"x[0] = {z} + {n} + {share.marked(7, 'int32')} + {z};")

    one, two, three = share.share([text(3, 255), text(-3, 15), text(3, 255)])
    assert one.text == two.text == three.text and one.name == two.name
    assert one.numbers == three.numbers == (3, 255) and two.numbers == (-3, 15)
    # The 7 is the same everywhere and both places of the first number are one parameter.
    body = "{ x[0] = q_number0 + q_number1 + 7 + q_number0; }"
    assert (
        one.text == f"void {one.name}(int *x, int32_t q_number0, int64_t q_number1) {body} // x, q_number0, q_number1"
    )


def test_other_texts_stay_apart() -> None:
    number = share.marked(1, "int32")
    one, two = share.share([template(f"x[0] = {number};"), template(f"x[1] = {number};")])
    assert one.name != two.name and one.numbers == two.numbers == ()
    assert "x[0] = 1;" in one.text


def test_same_number_of_other_types_stays_apart() -> None:
    one, two = share.share([template(f"x[0] = {share.marked(1, dtype)};") for dtype in ("int32", "int64")])
    assert one.name != two.name


def test_cache_keeps_and_forgets(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, limit=100)
    assert cache.get("a") is None
    cache.put("a", (b"x" * 40, b""))
    cache.put("b", (b"y" * 20, b"z" * 20))
    cache.trim()
    assert cache.get("a") == (b"x" * 40, b"") and cache.get("b") == (b"y" * 20, b"z" * 20)
    assert cache.get("a") is not None
    cache.put("c", (b"w" * 40, b""))
    cache.trim()
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 100 and cache.get("c") is not None


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cuda-v1").write_text("a file where the folder should be")
    cache = ImageCache(tmp_path)
    cache.put("a", (b"x", b"y"))
    cache.trim()
    assert cache.get("a") is None
