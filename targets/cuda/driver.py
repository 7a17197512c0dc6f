"""The CUDA driver through its C interface: contexts, modules, memory, launches, graphs.

Nothing but the driver itself is needed at run time.  Names are those of the driver API; `_v2` and the like are
the versions that current headers map the plain names to.  Everything is queued in one stream of its own, copies and
fills too: a copy that is not may still be under way when it returns (Driver API, "API synchronization behavior").
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from qcompile.errors import DeviceError

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76
_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1
"""A stream that does not wait for the default one, which other libraries use."""
_RELAXED_CAPTURE = 2
"""Other calls, of this thread or others, do not end the capture: Python may free device memory at any time."""

_HANDLE = POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_HANDLE,),
    "cuModuleLoadData": (_HANDLE, c_void_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (_HANDLE, c_void_p, c_char_p),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, _HANDLE, _HANDLE),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
}
"""What is called, with its parameters; all of them return CUresult."""


@cache
def _library() -> Any:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function, parameters in _SIGNATURES.items():
            try:
                getattr(library, function).argtypes = parameters
            except AttributeError:
                raise DeviceError(
                    f"this machine's NVIDIA driver has no {function}", hint="install a driver for CUDA 12 or newer"
                ) from None
        return library
    raise DeviceError(
        "this machine has no NVIDIA driver (libcuda.so.1), so nothing can run on a GPU here",
        hint="run the artifact on a machine with an NVIDIA GPU and its driver, or compile for `--target cpu`",
    )


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DeviceError: it failed; with the driver's words.
    """
    library = _library()
    code = getattr(library, name)(*arguments)
    if not code:
        return
    text = c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    words = (text.value or b"unknown error").decode()
    hint = "see what nvidia-smi says of the device"
    if code == _OUT_OF_MEMORY:
        hint = "run fewer samples at a time; nvidia-smi says what else uses the GPU's memory"
    raise DeviceError(f"the GPU's driver: {name}: {words} ({code})", hint=hint)


def _release(name: str, handle: Any) -> None:
    """Give something back; the driver may be gone already, and errors of earlier work are reported elsewhere."""
    device = _opened
    if device is None:
        return
    library = _library()
    if library.cuCtxPushCurrent_v2(device._context) == 0:
        getattr(library, name)(handle)
        library.cuCtxPopCurrent_v2(ctypes.byref(c_void_p()))


class Device:
    """The first GPU and its primary context, which other libraries of the process share.

    Its objects are made and used inside `with device.current():`, by any thread.
    """

    def __init__(self) -> None:
        call("cuInit", 0)
        count = c_int()
        call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise DeviceError("this machine has an NVIDIA driver but no GPU", hint="CUDA_VISIBLE_DEVICES may hide it")
        device = c_int()
        call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        self._context = c_void_p()
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread, and then whichever was before."""
        call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(c_void_p()))

    def attribute(self, number: int) -> int:
        value = c_int()
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


_opened: Device | None = None


def device() -> Device:
    """The device, opened once: the context lives as long as the process.

    Raises:
        DeviceError: there is no driver, or no GPU.
    """
    global _opened
    if _opened is None:
        _opened = Device()
    return _opened


class Memory:
    """Bytes on the device, freed with the object."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._address = c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self._address), self.size)

    @property
    def address(self) -> int:
        return self._address.value

    def __del__(self) -> None:
        if self._address.value:
            _release("cuMemFree_v2", self._address)


class Module:
    """Loaded machine code, or PTX that the driver compiles now."""

    def __init__(self, image: bytes) -> None:
        self._handle = c_void_p()
        # The driver reads the image during the call only.
        call("cuModuleLoadData", ctypes.byref(self._handle), ctypes.cast(c_char_p(image), c_void_p))

    def function(self, name: str) -> c_void_p:
        """A kernel, which lives as long as its module."""
        found = c_void_p()
        call("cuModuleGetFunction", ctypes.byref(found), self._handle, name.encode())
        return found

    def __del__(self) -> None:
        if self._handle.value:
            _release("cuModuleUnload", self._handle)


class Stream:
    """A queue of work."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        call("cuStreamCreate", ctypes.byref(self._handle), _NON_BLOCKING)

    def launch(
        self,
        function: c_void_p,
        grid: tuple[int, int],
        threads: int,
        pointers: Sequence[tuple[int, int]],
        numbers: Sequence[int] = (),
    ) -> None:
        """Launch a kernel.

        Args:
            function: `name(a0, stride0, a1, stride1, …, numbers…)`.
            grid: blocks, samples.
            threads: of a block.
            pointers: (address, bytes from one sample to the next).
            numbers: what follows them, as int32 or int64: the driver takes as many bytes as the kernel declares, and
                in two's complement the lower half of an int64 is the int32.
        """
        values = [number for pair in pointers for number in pair]
        cells = [c_uint64(value & 0xFFFF_FFFF_FFFF_FFFF) for value in (*values, *numbers)]
        places = (c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
        # Parameters are copied during the call, captured or not.
        call("cuLaunchKernel", function, *grid, 1, threads, 1, 1, 0, self._handle, places, None)

    def write(self, memory: Memory, host: int, size: int) -> None:
        """Copy from host memory, which may be reused at once: it is staged before this returns."""
        self._fits(memory, size)
        call("cuMemcpyHtoDAsync_v2", memory.address, host, size, self._handle)

    def read(self, memory: Memory, host: int, size: int) -> None:
        """Copy to host memory, there after `synchronize`."""
        self._fits(memory, size)
        call("cuMemcpyDtoHAsync_v2", host, memory.address, size, self._handle)

    def clear(self, memory: Memory) -> None:
        """Fill with zeros."""
        call("cuMemsetD8Async", memory.address, 0, memory.size, self._handle)

    @staticmethod
    def _fits(memory: Memory, size: int) -> None:
        if size > memory.size:
            raise DeviceError(f"{size} bytes do not fit into {memory.size} of the device")

    @contextmanager
    def capture(self, graph: Graph) -> Iterator[None]:
        """Record what is launched meanwhile into a graph instead of running it."""
        call("cuStreamBeginCapture_v2", self._handle, _RELAXED_CAPTURE)
        captured = c_void_p()
        try:
            yield
        except BaseException:
            _library().cuStreamEndCapture(self._handle, ctypes.byref(captured))
            if captured.value:
                _library().cuGraphDestroy(captured)
            raise
        call("cuStreamEndCapture", self._handle, ctypes.byref(captured))
        graph.instantiate(captured)

    def synchronize(self) -> None:
        """Wait for all of it; errors of the work itself are raised here."""
        call("cuStreamSynchronize", self._handle)

    def settle(self) -> None:
        """Wait for all of it, after an error that is being reported."""
        _library().cuStreamSynchronize(self._handle)

    def __del__(self) -> None:
        if self._handle.value:
            _release("cuStreamDestroy_v2", self._handle)


class Graph:
    """Captured launches, launched as one; the memory they point at must outlive it."""

    def __init__(self) -> None:
        self._executable = c_void_p()

    def instantiate(self, captured: c_void_p) -> None:
        """Make it ready; what was captured is given back."""
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), captured, 0)
        finally:
            _library().cuGraphDestroy(captured)

    def launch(self, stream: Stream) -> None:
        call("cuGraphLaunch", self._executable, stream._handle)

    def __del__(self) -> None:
        if self._executable.value:
            _release("cuGraphExecDestroy", self._executable)


class Event:
    """A mark in a stream, to time what lies between two."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        call("cuEventCreate", ctypes.byref(self._handle), 0)

    def record(self, stream: Stream) -> None:
        call("cuEventRecord", self._handle, stream._handle)

    def seconds_since(self, start: Event) -> float:
        """Waits for this mark."""
        call("cuEventSynchronize", self._handle)
        milliseconds = c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), start._handle, self._handle)
        return milliseconds.value * 1e-3

    def __del__(self) -> None:
        if self._handle.value:
            _release("cuEventDestroy_v2", self._handle)
