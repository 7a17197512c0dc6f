"""The wall: how many 8-bit multiply-adds a core can do, measured at the clock it runs at now.

A loop of independent `vpdpbusd` on 512-bit registers, written as machine code, so that no compiler is needed.
"""

from __future__ import annotations

import ctypes
import mmap
import time

from benchmarks.conditions import cpu_flags

_ACCUMULATORS = 28
_LOOPS = 4
_MACS = 64
LOOP_OPS = 2 * _MACS * _ACCUMULATORS * _LOOPS
"""Operations (two for a multiply-add) of one iteration of the loop."""


def available() -> bool:
    """Whether this processor has the instruction."""
    return "avx512_vnni" in cpu_flags()


def _dot_product(register: int) -> bytes:
    """`vpdpbusd zmm<register>, zmm30, zmm31`, EVEX-encoded."""
    high, highest = register >> 3 & 1, register >> 4 & 1
    extensions = (1 - high) << 7 | (1 - highest) << 4 | 0b010  # cleared bits stand for 1: zmm31 is the operand
    return bytes((0x62, extensions, 0x0D, 0x40, 0x50, 0xC0 | (register & 7) << 3 | 7))


def machine_code() -> bytes:
    """A function of the System V ABI: repeats the dot products as often as its argument says."""
    body = b"".join(_dot_product(i) for i in range(_ACCUMULATORS)) * _LOOPS + b"\x48\xff\xcf"  # dec rdi
    back = -(len(body) + 6)
    return body + b"\x0f\x85" + back.to_bytes(4, "little", signed=True) + b"\xc5\xf8\x77\xc3"  # jnz; vzeroupper; ret


class Peak:
    """The loop, ready to be called.

    Raises:
        OSError: the processor lacks the instruction, or the system allows no executable memory.
    """

    def __init__(self, seconds: float = 1e-3) -> None:
        if not available():
            raise OSError("this processor has no 512-bit vpdpbusd")
        code = machine_code()
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)
        self._iterations = 1000
        self.call()
        start = time.perf_counter()
        self.call()
        self._iterations = max(1, int(self._iterations * seconds / (time.perf_counter() - start)))

    @property
    def ops(self) -> int:
        """Operations of one call."""
        return LOOP_OPS * self._iterations

    def call(self) -> None:
        """Run the loop once; about as long as was asked for."""
        self._call(self._iterations)


def measure_gops(calls: int = 50) -> float | None:
    """Giga-operations a second of one core, the fastest of some calls; None where it cannot be measured."""
    try:
        peak = Peak()
    except OSError:
        return None
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        peak.call()
        best = min(best, time.perf_counter() - start)
    return peak.ops / best * 1e-9
