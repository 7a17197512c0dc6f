"""Flags that several verbs share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qcompile.data import ImageFolder, Preprocessing
from qcompile.errors import UsageError
from qcompile.units import parse_bits

Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, show_default=False, help="Say more; twice says everything."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings, errors and the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars (off anyway without a terminal).")]
ArtifactPath = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder that `compile` wrote: model.qc")]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file.")]
Data = Annotated[
    str,
    typer.Option("--data", metavar="PATH", help=".npz with one array per model input, or a folder of images."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="ADDRESS", show_default=False,
        help="Where to measure and run: rpc://HOST:PORT?key=KEY, rpc://tracker@HOST:PORT?key=KEY. [default: here]",
    ),
]  # fmt: skip
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="INPUT:NxCxHxW", help="Shape of an input that is dynamic in the file. Repeat."),
]

_SHAPE = "input:1x3x224x224"
_IMAGES = "Folders of images"
ImagesMean = Annotated[
    str | None,
    typer.Option(
        "--images-mean", metavar="NUMBER[,…]", rich_help_panel=_IMAGES,
        help="Subtracted from pixels (0..255): one number, or one per channel as the model takes them.",
    ),
]  # fmt: skip
ImagesStd = Annotated[
    str | None,
    typer.Option(
        "--images-std",
        metavar="NUMBER[,…]",
        rich_help_panel=_IMAGES,
        help="Divides pixels after the mean is taken off.",
    ),
]
ImagesResize = Annotated[
    str | None,
    typer.Option("--images-resize", metavar="HxW", rich_help_panel=_IMAGES, help="Resize to this, in pixels, first."),
]
ImagesCrop = Annotated[
    str | None,
    typer.Option("--images-crop", metavar="HxW", rich_help_panel=_IMAGES, help="Then cut this from the centre."),
]
ImagesBgr = Annotated[
    bool, typer.Option("--images-bgr", rich_help_panel=_IMAGES, help="The model takes blue, green, red.")
]


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"cannot read {flag} {text!r}", hint="such as 123.675,116.28,103.53") from None


def _sizes(text: str, flag: str, example: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read {flag} {text!r}", hint=f"such as {example}")
    return tuple(map(int, parts))


def _extent(text: str | None, flag: str) -> tuple[int, int] | None:
    if text is None:
        return None
    sizes = _sizes(text, flag, "224x224")
    if len(sizes) != 2:
        raise UsageError(f"cannot read {flag} {text!r}", hint="height x width in pixels, such as 224x224")
    return sizes[0], sizes[1]


def preprocessing(
    mean: str | None, std: str | None, resize: str | None, crop: str | None, bgr: bool
) -> Preprocessing | None:
    """What the --images flags state, or None where none is given.  Raises UsageError."""
    if mean is None and std is None and resize is None and crop is None and not bgr:
        return None
    if mean is None or std is None:
        raise UsageError(
            "a folder of images needs both --images-mean and --images-std",
            hint="for pixels as they are, 0 to 255: --images-mean 0 --images-std 1",
        )
    return Preprocessing(
        _numbers(mean, "--images-mean"),
        _numbers(std, "--images-std"),
        _extent(resize, "--images-resize"),
        _extent(crop, "--images-crop"),
        bgr,
    )


def source(path: str, images: Preprocessing | None) -> Any:
    """A data source for the API: the path, or the folder with its preprocessing."""
    if Path(path).is_dir() and images is not None:
        return ImageFolder(Path(path), images)
    return Path(path)


def shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """`input:1x3x224x224` … → shape by input name.  Raises UsageError."""
    found = {}
    for text in texts or ():
        name, _, size = text.rpartition(":")
        if not name:
            raise UsageError(f"cannot read --shape {text!r}", hint=f"such as {_SHAPE}")
        found[name] = _sizes(size, f"the size in --shape {name}:", _SHAPE)
    return found or None


def pins(texts: list[str] | None) -> dict[str, str] | None:
    """`layer1.*=w8a8` … → bits by regular expression, in order.  Raises UsageError."""
    found = {}
    for text in texts or ():
        pattern, _, bits = text.rpartition("=")
        if not pattern:
            raise UsageError(f"cannot read --pin {text!r}", hint="such as 'layer1.*=w8a8'")
        parse_bits(bits)
        found[pattern] = bits
    return found or None


def widths(text: str | None, flag: str) -> tuple[int, ...] | None:
    """`2,4,8` → (2, 4, 8).  Raises UsageError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"cannot read {flag} {text!r}", hint="numbers of bits, such as 4,8")
    return tuple(map(int, parts))


def existing_model(path: str, verbs: tuple[str, ...]) -> str:
    """The path of a model file that exists.  Raises UsageError, with a guess at a misspelt verb."""
    if not Path(path).is_file():
        from difflib import get_close_matches

        near = get_close_matches(path, verbs, n=1)
        hint = f"did you mean `qcompile {near[0]}`?" if near else "a model is an ONNX file"
        raise UsageError(f"no such file: {path}", hint=hint)
    return path
