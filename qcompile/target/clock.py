"""How fast this processor runs at the moment.

Clocks change with temperature, neighbours on the same chip and power limits, by 15 % within seconds on shared
machines.  A fixed piece of work whose steps depend on each other takes a fixed number of cycles, so its time says
what a second is worth; two measurements are compared after dividing each by the probe beside it.
"""

from __future__ import annotations

import hashlib
import statistics
import time

_BLOCK = bytes(8192)
_CALLS = 40


def probe() -> float:
    """Seconds of one SHA-256 over 8 KiB, median of 40 calls: a chain of dependent steps in registers."""
    clock = time.perf_counter_ns
    spent = []
    for _ in range(_CALLS):
        start = clock()
        hashlib.sha256(_BLOCK)
        spent.append(clock() - start)
    return statistics.median(spent) * 1e-9
