"""The machine code beside a program: images of every architecture in one file, and which of them a device takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qcompile.errors import DeviceError
from targets.cuda.build import Image


def pack(made: Mapping[str, Mapping[str, Image]]) -> tuple[bytes, list[dict[str, Any]]]:
    """One file of all images, and for each the architecture, the kernels, and where its code and PTX lie.

    Args:
        made: architecture → kernel → image.
    """
    blob, described = bytearray(), []
    for architecture, kernels in made.items():
        names: dict[Image, list[str]] = {}
        for name, image in kernels.items():
            names.setdefault(image, []).append(name)
        for image, defined in names.items():
            places = []
            for part in (image.code, image.ptx):
                places.append([len(blob), len(part)])
                blob += part
            described.append({"architecture": architecture, "kernels": defined, "code": places[0], "ptx": places[1]})
    return bytes(blob), described


def listings(blob: bytes, described: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The PTX of every image."""
    for image in described:
        start, size = image["ptx"]
        yield blob[start : start + size].decode()


def number(architecture: str) -> int:
    """90 of `sm_90`."""
    return int(architecture.removeprefix("sm_").rstrip("af"))


def choose(blob: bytes, described: Sequence[Mapping[str, Any]], device: str) -> list[tuple[bytes, list[str]]]:
    """The images a device runs, each with its kernels.

    Machine code runs on the same generation of at least its own revision; a generation that came later compiles
    PTX for itself (CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility").

    Raises:
        DeviceError: the device is older than every architecture.
    """
    built = {number(image["architecture"]): image["architecture"] for image in described}
    mine = number(device)
    same = [n for n in built if n // 10 == mine // 10 and n <= mine]
    older = [n for n in built if n <= mine]
    if not older:
        raise DeviceError(
            f"this GPU is {device}, older than what the artifact was built for ({', '.join(built.values())})",
            hint=f"compile it with --target cuda:{device}, or run it on a newer GPU",
        )
    chosen, part = (max(same), "code") if same else (max(older), "ptx")
    found = []
    for image in described:
        if image["architecture"] == built[chosen]:
            start, size = image[part]
            # The driver reads PTX up to a final zero.
            found.append((blob[start : start + size] + (b"\0" if part == "ptx" else b""), list(image["kernels"])))
    return found
