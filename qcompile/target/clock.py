"""How fast this processor runs at the moment.

Clocks change with temperature, neighbours on the same chip and power limits, by 15 % within seconds on shared
machines.  A fixed piece of work whose steps depend on each other takes a fixed number of cycles, so its time says
what a second is worth; two measurements are compared after dividing each by the probe beside it.

What the measured code itself does to the clock belongs to its time and must not be divided away.  Some processors run
slower while they multiply wide vectors, and for 2 to 3 ms behind that: `probe` waits until it is over.  It uses no
vectors either: SHA-256 instructions, for one, slow down twice as much as the clock does there.

Whoever shares the core's execution units slows down what fills them, for seconds at a time, and wide vectors by another
share or not at all: beside such a probe a kernel seems quicker than any clock would make it.  Each step of MD5 waits
for the one before, so that it loses 5 % where SHA-3 loses 45.  What remains is met by taking the quickest call of a
probe, the quicker one of two probes, and of several measurements one that another confirms (`qcompile.target.turns`).
"""

from __future__ import annotations

import hashlib
import time

_BLOCK = bytes(8192)
_CALLS = 40
_SETTLE_SECONDS = 4e-3
_PROBES = 8


def probe() -> float:
    """Seconds of one MD5 over 8 KiB, the quickest of 40 calls: a chain of dependent steps in integer registers.

    Before them it computes the same for 4 ms.
    """
    clock = time.perf_counter_ns
    begin = clock()
    while clock() - begin < _SETTLE_SECONDS * 1e9:
        hashlib.md5(_BLOCK, usedforsecurity=False)
    quickest = 1 << 62
    for _ in range(_CALLS):
        start = clock()
        hashlib.md5(_BLOCK, usedforsecurity=False)
        quickest = min(quickest, clock() - start)
    return quickest * 1e-9


def probe_long() -> float:
    """The quickest of several probes, for one look that nothing confirms."""
    return min(probe() for _ in range(_PROBES))
