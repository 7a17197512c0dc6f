"""From CUDA text to binaries, without a device."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import TargetError

COMPILER = "nvcc"
QUIET = ("-diag-suppress", "177")
"""No remarks on device functions that a program does not need."""
_SOURCE = "kernels.cu"
_ENVIRONMENT = "CUDA_HOME"
_FLOAT = re.compile(r"\.(?:f16x?2?|bf16x?2?|f32x?2?|f64|tf32|e4m3\w*|e5m2\w*)\b")


def find_compiler() -> str:
    """nvcc from the path, from $CUDA_HOME, or from NVIDIA's Python package.

    Raises:
        TargetError: there is none.
    """
    places = [shutil.which(COMPILER)]
    if home := os.environ.get(_ENVIRONMENT):
        places.append(shutil.which(COMPILER, path=str(Path(home) / "bin")))
    for package in ("nvidia.cu13", "nvidia.cuda_nvcc"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for root in (found.submodule_search_locations or []) if found else []:
            places.append(shutil.which(COMPILER, path=str(Path(root) / "bin")))
    for place in places:
        if place:
            return place
    raise TargetError(
        "no CUDA compiler here: looked for nvcc on the path, in $CUDA_HOME/bin and in NVIDIA's Python packages",
        hint="install the CUDA toolkit, or `pip install nvidia-cuda-nvcc`",
    )


def toolchain(options: Mapping[str, str]) -> str:
    """`find_compiler`; see `qcompile.target.model.Target`."""
    return find_compiler()


@cache
def compiler_version() -> str:
    """`nvcc 13.0`; without a compiler `nvcc none`."""
    try:
        text = subprocess.run([find_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    except (TargetError, OSError, subprocess.CalledProcessError):
        return f"{COMPILER} none"
    found = re.search(r"release ([\d.]+)", text)
    return f"{COMPILER} {found[1] if found else 'unknown'}"


def _compiled(text: str, output: str, *arguments: str) -> bytes:
    """The file that nvcc makes of a source."""
    with TemporaryDirectory() as folder:
        (Path(folder) / _SOURCE).write_text(text)
        # The file's path would enter the binary; a relative one is the same everywhere.
        command = [find_compiler(), "-O3", "-std=c++17", *QUIET, *arguments, "-o", output, _SOURCE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise TargetError(f"the CUDA compiler failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return (Path(folder) / output).read_bytes()


def fat_binary(text: str, architectures: Sequence[str]) -> bytes:
    """Machine code for every architecture, and PTX of the newest for those to come."""
    numbers = [a.removeprefix("sm_") for a in architectures]
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    codes.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    return _compiled(text, "kernels.fatbin", "-fatbin", *codes)


def ptx(text: str, architecture: str) -> str:
    """The assembly of one architecture."""
    return _compiled(text, "kernels.ptx", "-ptx", f"-arch={architecture}").decode()


def float_operations(listing: str) -> list[str]:
    """Instructions of a PTX listing that work on floating-point types."""
    found = []
    for line in listing.splitlines():
        words = line.split()
        if words and not words[0].startswith((".", "//")) and _FLOAT.search(words[0]):
            found.append(words[0])
    return found
