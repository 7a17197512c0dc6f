"""From CUDA text to machine code, without a device: by NVRTC where it is here, else by nvcc.

Kernels are compiled one by one on all processors and kept by a hash of everything that matters, so that plans of one
network, and networks that share kernels, compile only what is new.  With nvcc, whose start takes longer than a small
kernel, all that are new are one file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import TargetError
from qcompile.target.bench import available_cores
from targets.cuda import nvrtc
from targets.cuda.image_cache import ImageCache
from targets.cuda.places import HOME, package_folders

NVRTC, NVCC = "nvrtc", "nvcc"
CHOSEN = "QCOMPILE_CUDA_COMPILER"
"""The variable that asks for one of the two."""
_SOURCE = "kernels.cu"
_FLOAT = re.compile(r"\.(?:f16x?2?|bf16x?2?|f32x?2?|f64|tf32|e4m3\w*|e5m2\w*)\b")
_INTERNAL = re.compile(r"_INTERNAL_[0-9a-f]{8}_")
"""nvcc's names of what a file keeps to itself hold a hash of the folder it was compiled in."""
_HINT = "`pip install qcompile[cuda]` brings NVRTC; or install the CUDA toolkit and put nvcc on the path"


@dataclass(frozen=True, slots=True)
class Image:
    """Compiled kernels: machine code of one architecture, and the PTX it was assembled from."""

    code: bytes
    ptx: bytes


def find_nvcc() -> str | None:
    """nvcc from the path, from $CUDA_HOME, or from NVIDIA's Python packages."""
    folders = [str(Path(home) / "bin")] if (home := os.environ.get(HOME)) else []
    folders += [str(folder / "bin") for folder in package_folders()]
    for path in (None, *folders):
        if found := shutil.which(NVCC, path=path):
            return found
    return None


def find_compiler() -> str:
    """`nvrtc` where that library is here, else the path of nvcc; QCOMPILE_CUDA_COMPILER asks for one of them.

    Raises:
        TargetError: there is neither, or not the one that was asked for.
    """
    chosen = os.environ.get(CHOSEN, "")
    if chosen not in ("", NVRTC, NVCC):
        raise TargetError(f"{CHOSEN}={chosen} is no compiler", hint=f"it takes {NVRTC} or {NVCC}")
    if chosen != NVCC and nvrtc.library() is not None:
        return NVRTC
    if chosen != NVRTC and (found := find_nvcc()):
        return found
    looked = {
        NVRTC: "looked for the library NVRTC in NVIDIA's Python packages, in $CUDA_HOME and in the system",
        NVCC: "looked for nvcc on the path, in $CUDA_HOME/bin and in NVIDIA's Python packages",
        "": "looked for the library NVRTC and for nvcc: in NVIDIA's Python packages, in $CUDA_HOME and in the system",
    }
    raise TargetError(f"no CUDA compiler here: {looked[chosen]}", hint=_HINT)


def toolchain(options: Mapping[str, str]) -> str:
    """`find_compiler`; see `qcompile.target.model.Target`."""
    return find_compiler()


def compiler_version() -> str:
    """`nvrtc 13.0` or `nvcc 13.0`; without a compiler `none`."""
    try:
        return _version(find_compiler())
    except TargetError:
        return "none"


@cache
def _version(compiler: str) -> str:
    if compiler == NVRTC:
        return f"{NVRTC} {nvrtc.version()}"
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return f"{NVCC} {found[1] if found else 'unknown'}"


def compile_kernels(
    prelude: str, kernels: Mapping[str, str], architectures: Sequence[str]
) -> dict[str, dict[str, Image]]:
    """The image of every kernel for every architecture: architecture → kernel → image.

    Several kernels may share one image.

    Args:
        prelude: what every file of kernels begins with.
        kernels: symbol → definition.

    Raises:
        TargetError: there is no compiler, or it failed.
    """
    compiler, images = find_compiler(), ImageCache()
    files = [[name] for name in kernels] if compiler == NVRTC else [list(kernels)]
    jobs = [(architecture, names) for architecture in architectures for names in files]

    def one(job: tuple[str, list[str]]) -> Image:
        architecture, names = job
        text = prelude + "".join(kernels[name] for name in names)
        key = _key(compiler, architecture, text)
        known = images.get(key)
        if known is not None:
            return Image(*known)
        image = compile_text(text, architecture, compiler)
        images.put(key, (image.code, image.ptx))
        return image

    made: dict[str, dict[str, Image]] = {architecture: {} for architecture in architectures}
    with ThreadPoolExecutor(available_cores()) as pool:
        for (architecture, names), image in zip(jobs, pool.map(one, jobs), strict=True):
            made[architecture] |= dict.fromkeys(names, image)
    images.trim()
    return made


def _key(compiler: str, architecture: str, text: str) -> str:
    parts = (_version(compiler), architecture, *_OPTIONS, text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


_OPTIONS = ("-std=c++17", "-diag-suppress=177")
"""No remarks on device functions that a kernel does not need."""


def compile_text(text: str, architecture: str, compiler: str | None = None) -> Image:
    """Machine code and PTX of one file for one architecture.

    Raises:
        TargetError: there is no compiler, or it failed.
    """
    compiler = compiler or find_compiler()
    if compiler == NVRTC:
        return Image(*nvrtc.compile_text(text, [f"-arch={architecture}", *_OPTIONS]))
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _SOURCE).write_text(text)
        _run(compiler, folder, f"-arch={architecture}", *_OPTIONS, "-O3", "-ptx", "-o", "kernels.ptx", _SOURCE)
        listing = (folder / "kernels.ptx").read_text()
        (folder / "kernels.ptx").write_text(_INTERNAL.sub("_INTERNAL_00000000_", listing))
        _run(compiler, folder, f"-arch={architecture}", "-O3", "-cubin", "-o", "kernels.cubin", "kernels.ptx")
        return Image((folder / "kernels.cubin").read_bytes(), (folder / "kernels.ptx").read_bytes())


def _run(compiler: str, folder: Path, *arguments: str) -> None:
    # Paths would enter the output; relative ones are the same everywhere.
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise TargetError(f"the CUDA compiler failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def float_operations(listing: str) -> list[str]:
    """Instructions of a PTX listing that work on floating-point types."""
    found = []
    for line in listing.splitlines():
        words = line.split()
        if words and words[0].startswith(("@", "{")):
            words = words[1:]
        if words and not words[0].startswith((".", "//")) and _FLOAT.search(words[0]):
            found.append(words[0])
    return found
