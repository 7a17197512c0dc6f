"""The operators of `op_cases` at few shapes, for targets whose programs run under an emulator: one graph, one run."""

from __future__ import annotations

from op_cases import Cases


def arm_cases(c: Cases) -> None:
    """What distinguishes 128-bit vectors: 16-byte steps and their tails, 4-channel blocks, pairs of pixels, shifts."""
    for channels, out, kernel, stride, pad, size, bits, act in (
        (64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (7, 6), 8, 8),  # whole 16-byte steps
        (64, 24, (3, 3), (1, 1), (1, 1, 1, 1), (5, 5), 4, 4),  # hundreds of products in int16; Winograd
        (32, 20, (1, 1), (1, 1), (0, 0, 0, 0), (3, 3), 6, 7),  # inputs that fit int8
        (20, 17, (3, 2), (2, 1), (1, 0, 1, 1), (5, 7), 6, 8),  # tails of 4 bytes, outputs that fill no block
        (3, 16, (3, 3), (2, 2), (1, 1, 1, 1), (11, 9), 8, 8),  # taps of a row as one run
        (48, 8, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 8, 8),  # one pixel
        (16, 16, (3, 3), (1, 1), (1, 1, 1, 1), (8, 8), 5, 6),
    ):
        x = c.image(channels, *size, dtype=f"u{act}")
        reach = channels * kernel[0] * kernel[1] * 40.0 * 2 ** (bits - 1)
        y = c.conv(x, out, kernel, bits=bits, stride=stride, pad=pad, pad_value=3)
        c.show(c.requant(y, reach=reach, zp=7, dtype=f"u{act}"))
    for groups, channels, out in ((2, 32, 64), (3, 9, 12)):
        x = c.image(channels, 5, 4)
        c.show(c.requant(c.conv(x, out, (3, 3), groups=groups, pad=(1, 1, 1, 1)), reach=1 << 17))
    for channels, kernel, stride, act in ((16, 3, 1, 8), (48, 3, 2, 7), (32, 5, 1, 8), (20, 3, 1, 8), (16, 3, 2, 4)):
        x, edge = c.image(channels, 9, 8, dtype=f"u{act}"), (kernel // 2,) * 4
        y = c.conv(x, channels, (kernel, kernel), groups=channels, stride=(stride, stride), pad=edge, pad_value=9)
        c.show(c.requant(y, reach=1 << 15, zp=100))
    for shape, out in (((64,), 10), ((63,), 17), ((3, 40), 24)):
        x = c.input(*shape)
        c.show(c.requant(c.linear(x, out), reach=1 << 18))
    x, r = c.image(16, 6, 5), c.image(24, 6, 5)
    y = c.conv(x, 24, (3, 3), pad=(1, 1, 1, 1))
    wide = c.requant(y, r, reach=1 << 17, zeros=(0, 11), dtype="i32")
    c.show(wide)
    # Products of both signs, two terms, a narrow shift, one multiplier for all and one for every position.
    c.show(c.requant(wide, r, reach=1 << 17, per="tensor", zeros=(-5, 200)))
    c.show(c.requant(x, reach=255, zeros=(100,), negative=True, zp=20))
    c.show(c.requant(x, small_shift=True, zeros=(3,), dtype="i32"))
    c.show(c.requant(x, x, reach=300, per="position"))
    v = c.input(19, dtype="i32")
    c.show(c.requant(v, reach=1 << 28, zeros=(0,), negative=True, zp=100))
    c.show(c.requant(v, zeros=(1,), small_shift=True, zp=-100, dtype="i32"))
    c.show(c.op("mul", x, x, zeros=(0, 255)))
    c.show(c.op("max_pool", x, kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)))
    pooled = c.op("sum_pool", x, kernel=(2, 2), stride=(2, 2), pad=(0, 0, 0, 0), pad_value=6)
    c.show(c.requant(pooled, reach=1 << 10))
    c.show(c.requant(c.op("reduce_sum", x, axes=(2, 3), keepdims=0), reach=1 << 14, per="tensor"))
    c.show(c.op("table", x, consts={"t": c.rng.integers(0, 256, 256).astype("uint8")}, dtype="u8"))
    c.show(c.op("concat", x, r, axis=1))
    c.show(c.op("slice", r, starts=(3, 1, 0), ends=(14, 5, 5), steps=(1, 2, 3)))
    c.show(c.op("resize", x, rows=(0, 0, 1, 1, 2, 4), cols=(4, 3, 1, 0)))
