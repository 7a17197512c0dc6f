"""Which variant of a matrix product to prefer where nothing is measured.

Blocks fill the multiprocessors in waves, as many at once on each as shared memory and registers allow.  A wave takes,
for each chunk of the inner dimension, the longest of the multiply-adds of the blocks that are together on a
multiprocessor, of their copies out of the far cache, and of a copy's latency, of which `stages` − 1 are under way at
once; then come the latency of the first chunk and the epilogue.  No product takes less than its weights take from
memory.  Only the order of what comes out is used: nobody has measured it (`estimate` is what plans are made with).
"""

from __future__ import annotations

from collections.abc import Sequence

from targets.cuda.block import LANES, THREADS
from targets.cuda.devices import Gpu
from targets.cuda.tiles import CHUNK, TILES, Form, Shape, Variant

_REGISTERS = 1 << 16
"""Of a multiprocessor."""
_OTHER_REGISTERS = 48
"""Of a thread, besides its sums: what `ptxas` reports for all tiles is within 20 of this."""
_ENOUGH_REUSE = 16
"""Multiply-adds for each byte of fragments, divided by 32: from 32×32 outputs of a warp on, shared memory keeps up."""
_MOST_BLOCKS = 16
"""Of a multiprocessor at once."""
_COPY_SECONDS = 0.6e-6
"""From asking for a chunk of the far cache or memory until it is there: the order of what microbenchmarks find."""
_TURN_SECONDS = 0.1e-6
"""Barrier, addresses and first fragments of a chunk: what a block alone cannot hide."""
_EPILOGUE_OPERATIONS = 10
"""Instructions for an output of bytes, from the machine code (sm_80)."""
_ARRIVE_SECONDS = 1.5e-6
"""Fence, counter and the reading of other blocks' sums."""
_CACHE_FACTOR = 3
"""How much faster the far cache delivers than memory."""


def rank(shape: Shape, variant: Variant, gpu: Gpu) -> tuple[float, float, int, str]:
    """What variants are ordered by: seconds of a product for one sample, the same without the time of its weights from
    memory, bytes copied, and the name."""
    tile, form = variant.tile, variant.form
    macs = gpu.macs_per_second / gpu.multiprocessors * gpu.reached * (gpu.nibble_speed if form.nibbles else 1)
    far_bytes = gpu.memory_bytes_per_second * _CACHE_FACTOR / gpu.multiprocessors
    registers = (tile.warp_rows * tile.warp_cols // LANES + _OTHER_REGISTERS) * THREADS
    resident = min(gpu.shared_bytes // (variant.shared_bytes + 1024), _REGISTERS // registers, _MOST_BLOCKS)
    blocks, chunks = shape.tiles(tile) * variant.splits, shape.per_split(variant.splits)
    waves = -(-blocks // (gpu.multiprocessors * resident))
    together = -(-blocks // (waves * gpu.multiprocessors))
    reuse = tile.warp_rows * tile.warp_cols / (tile.warp_rows + tile.warp_cols)
    efficiency = min(1.0, reuse / _ENOUGH_REUSE)
    outputs, copied = tile.rows * tile.cols, sum(variant.stage_bytes)
    turn = max(
        together * outputs * CHUNK / (macs * efficiency),
        together * copied / far_bytes,
        _COPY_SECONDS / (tile.stages - 1),
        _TURN_SECONDS,
    )
    epilogue = together * outputs * _EPILOGUE_OPERATIONS / (gpu.lanes * gpu.clock)
    seconds = waves * (_COPY_SECONDS + chunks * turn + epilogue)
    if variant.splits > 1:
        seconds += _ARRIVE_SECONDS + (variant.splits - 1) * outputs * 4 / far_bytes
    weights = shape.groups * shape.cols * shape.chunks * CHUNK * form.weight_bits // 8
    return max(seconds, weights / gpu.memory_bytes_per_second), seconds, blocks * chunks * copied, variant.name


_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_OFFERED = 8
"""Variants worth measuring."""


def preferred(shape: Shape, forms: Sequence[Form], gpu: Gpu) -> tuple[Variant, ...]:
    """The variants of a product worth trying, the best by `rank` first.

    Args:
        forms: those the layer allows.
    """
    candidates = []
    for tile in TILES:
        for splits in _SPLITS:
            per = shape.per_split(splits)
            # Every split has chunks, and enough of them to fill the pipeline.
            if splits == 1 or (-(-shape.chunks // per) == splits and per >= tile.stages - 1):
                candidates += [Variant(tile, splits, form) for form in forms]
    fitting = [variant for variant in candidates if variant.fits]
    return tuple(sorted(fitting, key=lambda variant: rank(shape, variant, gpu))[:_OFFERED])
