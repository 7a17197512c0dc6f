"""A GPU made of the host: kernels' own text compiled with g++, run by a driver that is a small C library.

What is ours runs as it would on a device: the generated text, the packing, the launches and graphs, the calls of the
driver.  What stands in for the device lies in `cuda_host/`: device.h, instructions.h and fake_driver.c.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from targets.cuda import build, driver, executable
from targets.cuda.build import Image

FOLDER = Path(__file__).parent / "cuda_host"
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\)')

_WAITS = re.compile(r"\bq_(?:sync|mma\w*|ldmatrix\w*|swap)\(")

BACKWARDS = "FAKE_DEVICE_BACKWARDS"
"""The variable that lets the last block and the last thread begin: results must not depend on the order."""

needs_gcc = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="no gcc on this machine")


def compile_driver(folder: Path, name: str = "libcuda.so.1") -> Path:
    """The fake driver as a shared library."""
    path = folder / name
    command = ["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-w", "-o", str(path), str(FOLDER / "fake_driver.c")]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return path


def host_text(text: str) -> str:
    """Kernels as C++ of the host: a function `<name>_run(parameters, blocks, samples, threads)` for each."""
    kernels = text.index("#define q_")
    found = ['#include "device.h"', text[:kernels], '#include "instructions.h"', text[kernels:]]
    for name, parameters in _KERNEL.findall(text):
        types = [re.sub(r"\w+$", "", p.strip()).strip() for p in parameters.split(",")]
        values = ", ".join(f"*({t} *)p[{i}]" for i, t in enumerate(types))
        # Kernels without barriers need no fibers.
        waits = _WAITS.search(_body(text, name)) is not None
        serial = "for (int t = 0; t < threads; ++t) threadIdx.x = back ? threads - 1 - t : t, host::body();"
        once = "if (host::block(threads)) return 1;" if waits else serial
        found.append(f"""
static void **{name}_p;
static void {name}_once() {{ void **p = {name}_p; {name}({values}); }}
extern "C" const int {name}_sizes[] = {{{", ".join(f"sizeof({t})" for t in types)}, 0}};
extern "C" int {name}_run(void **p, int x, int y, int threads) {{
  {name}_p = p, host::body = {name}_once, gridDim = {{(unsigned)x, (unsigned)y}}, blockDim = {{(unsigned)threads, 1}};
  bool back = getenv("{BACKWARDS}");
  for (int j = 0; j < y; ++j)
    for (int i = 0; i < x; ++i) {{
      blockIdx = {{(unsigned)(back ? x - 1 - i : i), (unsigned)j}};
      {once}
    }}
  return 0;
}}""")
    return "\n".join(found)


def _body(text: str, name: str) -> str:
    start = text.index(f"{name}_body(")
    return text[start : text.index('extern "C"', start)]


def compile_text(text: str, architecture: str, compiler: str | None = None) -> Image:
    """As `build.compile_text`: an image that the fake driver loads."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernels.cpp").write_text(host_text(text))
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-w",
            "-shared",
            "-fPIC",
            "-fwrapv",
            "-fno-strict-aliasing",
            f"-I{FOLDER}",
            "-o",
            "kernels.so",
        ]
        done = subprocess.run([*command, "kernels.cpp"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        code = (folder / "kernels.so").read_bytes()
    return Image(len(code).to_bytes(8, "little") + code, b"")


class FakeDriver:
    """The library, and what a test wants of it."""

    def __init__(self, path: Path) -> None:
        self.library: Any = ctypes.CDLL(str(path))
        self.library.fake_log.restype = ctypes.c_char_p
        self.library.fake_limit.argtypes = (ctypes.c_size_t,)

    def log(self) -> list[str]:
        """The names of all calls since `forget`."""
        return bytes(self.library.fake_log()).decode().split()

    def forget(self) -> None:
        self.library.fake_forget()

    def fail(self, name: str, code: int, after: int = 0) -> None:
        """Let one of the next calls of a function fail."""
        self.library.fake_fail(name.encode(), code, after)

    def limit(self, size: int) -> None:
        """Bytes of memory the device has."""
        self.library.fake_limit(size)

    def device(self, count: int, number: int) -> None:
        """How many devices, and of which architecture."""
        self.library.fake_device(count, number)

    def live(self) -> int:
        """Objects that were made and not given back."""
        return int(self.library.fake_live())


def install(monkeypatch: pytest.MonkeyPatch, path: Path) -> FakeDriver:
    """Put the fake driver in place of the real one, and g++ in place of the CUDA compiler."""
    fake = FakeDriver(path)
    monkeypatch.setattr(driver, "_LIBRARIES", (str(path),))
    monkeypatch.setattr(driver, "_opened", None)
    # A cache of its own: what a test has opened is not found by the tests behind it.
    monkeypatch.setattr(driver, "_library", functools.cache(driver._library.__wrapped__))
    monkeypatch.setattr(build, "find_compiler", lambda: "g++")
    monkeypatch.setattr(build, "_version", lambda compiler: "g++ of the host")
    monkeypatch.setattr(build, "compile_text", compile_text)
    # Time does not pass there, and one measurement is like the other.
    monkeypatch.setattr(executable, "enough_runs", lambda seconds: 2)
    monkeypatch.setattr(executable, "_REPEATS", 2)
    monkeypatch.setattr(executable, "_WARM", 1)
    return fake
