"""The CUDA driver through its C interface: contexts, modules, memory, launches, graphs.

Nothing but the driver itself is needed at run time.  Names are those of the driver API; `_v2` and the like are
the versions that current headers map the plain names to.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from functools import cache
from typing import Any

from qcompile.errors import DeviceError

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_GLOBAL_CAPTURE = 0
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76


@cache
def _library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(
        "this machine has no NVIDIA driver (libcuda.so.1)",
        hint="run the artifact on a machine with an NVIDIA GPU and its driver",
    )


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.  Raises DeviceError with the driver's words where it fails."""
    library = _library()
    code = getattr(library, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        words = (text.value or b"unknown error").decode()
        raise DeviceError(f"the GPU's driver: {name}: {words} ({code})", hint="see what nvidia-smi says of the device")


class Device:
    """The first GPU and its primary context, current in this thread."""

    def __init__(self) -> None:
        call("cuInit", 0)
        count = ctypes.c_int()
        call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise DeviceError("this machine has an NVIDIA driver but no GPU", hint="CUDA_VISIBLE_DEVICES may hide it")
        device = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(device), 0)
        context = ctypes.c_void_p()
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        call("cuCtxSetCurrent", context)
        self._device = device

    def attribute(self, number: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    @property
    def architecture(self) -> str:
        """`sm_90` and the like."""
        return f"sm_{self.attribute(_COMPUTE_MAJOR)}{self.attribute(_COMPUTE_MINOR)}"

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode()


class Memory:
    """Bytes on the device, freed with the object."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self.address = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(self.size))

    def write(self, address: int, size: int) -> None:
        """From host memory."""
        call("cuMemcpyHtoD_v2", self.address, ctypes.c_void_p(address), ctypes.c_size_t(size))

    def read(self, address: int, size: int) -> None:
        """To host memory; waits for the device."""
        call("cuMemcpyDtoH_v2", ctypes.c_void_p(address), self.address, ctypes.c_size_t(size))

    def clear(self) -> None:
        call("cuMemsetD8_v2", self.address, ctypes.c_ubyte(0), ctypes.c_size_t(self.size))

    def __del__(self) -> None:
        if self.address.value:
            _library().cuMemFree_v2(self.address)


class Module:
    """Loaded machine code."""

    def __init__(self, image: bytes) -> None:
        self._module = ctypes.c_void_p()
        # The image must outlive the call only, but a fat binary is read in place meanwhile.
        call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(image))

    def function(self, name: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        call("cuModuleGetFunction", ctypes.byref(found), self._module, name.encode())
        return found


class Stream:
    """A queue of work."""

    def __init__(self) -> None:
        self.handle = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self.handle), 1)

    def launch(
        self, function: ctypes.c_void_p, blocks: int, samples: int, threads: int, arguments: Sequence[tuple[int, int]]
    ) -> None:
        """Launch (blocks, samples) blocks; arguments are (address, bytes from one sample to the next)."""
        values = [number for pair in arguments for number in pair]
        cells = [ctypes.c_uint64(value) for value in values]
        pointers = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
        call("cuLaunchKernel", function, blocks, samples, 1, threads, 1, 1, 0, self.handle, pointers, None)

    def begin_capture(self) -> None:
        call("cuStreamBeginCapture_v2", self.handle, _GLOBAL_CAPTURE)

    def end_capture(self) -> Graph:
        graph = ctypes.c_void_p()
        call("cuStreamEndCapture", self.handle, ctypes.byref(graph))
        return Graph(graph)

    def synchronize(self) -> None:
        call("cuStreamSynchronize", self.handle)


class Graph:
    """Captured launches, ready to be launched as one."""

    def __init__(self, graph: ctypes.c_void_p) -> None:
        self._executable = ctypes.c_void_p()
        call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_uint64(0))
        call("cuGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        call("cuGraphLaunch", self._executable, stream.handle)


class Event:
    """A mark in a stream, to time what lies between two."""

    def __init__(self) -> None:
        self._event = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self, stream: Stream) -> None:
        call("cuEventRecord", self._event, stream.handle)

    def seconds_since(self, start: Event) -> float:
        """Waits for this mark."""
        call("cuEventSynchronize", self._event)
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), start._event, self._event)
        return milliseconds.value * 1e-3
