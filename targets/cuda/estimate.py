"""What a kernel would take on a device that is not here: a roofline of the kernel's own instructions and bytes.

Nothing here was fitted to measurements.  A kernel takes its launch, and then the longest of

* the instructions of its blocks, dealt out to the multiprocessors in whole blocks, by the busiest of: tensor cores,
  integer lanes, load and store units, shared memory, issue;
* its parameters out of memory, or out of the far cache where those of the whole network stay there between
  inferences, and its images, which come from the far cache while they fit;
* what all its threads ask the far cache for;
* and at least the latencies that follow each other in one block, once for every wave of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompile.target.program import Program
from targets._tvm.context import Constant, Emitted, Value
from targets.cuda.block import LANES, THREADS
from targets.cuda.count import MMA_MACS, Count
from targets.cuda.devices import Gpu

LAUNCH_SECONDS = 1.5e-6
"""From the end of one kernel of a CUDA graph to the start of the next: the order that vendors and users report."""
_LATENCY_CLOCKS = 800
"""Of a load from far memory."""
_BARRIER_CLOCKS = 40
_FAR_BYTES_A_CLOCK = 40
"""That the far cache gives one multiprocessor."""
_SHARED_BYTES_A_CLOCK = 128
_ACCESSES_A_CLOCK = 32
_WARPS_A_CLOCK = 4
"""That issue an instruction."""
_MOST_BLOCKS = 16
"""Of a multiprocessor at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and what decides them.

    Attributes:
        seconds: of the whole kernel, its launch included.
        tensor, integer, memory, far, latency: seconds of each part alone.
    """

    seconds: float
    tensor: float
    integer: float
    memory: float
    far: float
    latency: float


def estimate(func: Any, blocks: int, emitted: Emitted, program: Program, gpu: Gpu) -> Estimate:
    """The time of one kernel for one sample.

    Args:
        func: what a thread runs (`printer.Kernel.func`).
        blocks: of the launch.
        emitted: the kernel's arguments.
    """
    count = Count(func)
    per_processor = -(-blocks // gpu.multiprocessors)
    warps = THREADS // LANES
    tensor_rate = gpu.tensor_macs * gpu.reached
    tensor = warps * (
        count.mma * MMA_MACS["q_mma"] / tensor_rate
        + count.mma_s4 * MMA_MACS["q_mma_s4"] / (tensor_rate * gpu.nibble_speed)
    )
    integer = THREADS * (count.alu + count.dot4) / gpu.lanes
    instructions = count.alu + count.dot4 + count.accesses + count.mma + count.mma_s4
    clocks = max(
        tensor,
        integer,
        THREADS * count.accesses / _ACCESSES_A_CLOCK,
        THREADS * count.shared_bytes / _SHARED_BYTES_A_CLOCK,
        warps * instructions / _WARPS_A_CLOCK,
    )
    resident = max(1, min(_MOST_BLOCKS, gpu.threads // THREADS, gpu.shared_bytes // max(1, count.shared_size + 1024)))
    waves = -(-blocks // (gpu.multiprocessors * resident))
    latency = waves * (_LATENCY_CLOCKS + _BARRIER_CLOCKS * count.barriers) / gpu.clock
    memory = _memory_seconds(emitted, program, gpu)
    asked = blocks * THREADS * count.global_bytes
    far = asked / (_FAR_BYTES_A_CLOCK * gpu.clock * min(gpu.multiprocessors, blocks))
    busy = per_processor * clocks / gpu.clock
    return Estimate(
        LAUNCH_SECONDS + max(busy, memory, far, latency),
        per_processor * tensor / gpu.clock, per_processor * integer / gpu.clock, memory, far, latency,
    )  # fmt: skip


def _memory_seconds(emitted: Emitted, program: Program, gpu: Gpu) -> float:
    weights = sum(
        program.graph.consts[c].size for k in program.kernels for n in k.nodes for r, c in n.consts if r == "w"
    )
    parameters = sum(a.array.nbytes for a in emitted.arguments if isinstance(a, Constant))
    images = sum(program.buffers[a.name].layout.bytes for a in emitted.arguments if isinstance(a, Value))
    seconds = 0.0
    for size, together in ((parameters, weights + program.arena_bytes), (images, 2 * program.arena_bytes)):
        # Half of the cache, because it is not managed for this one program.
        if together > gpu.cache_bytes // 2:
            seconds += size / gpu.memory_bytes_per_second
    return seconds
