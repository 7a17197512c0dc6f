"""A target as data: what the machine offers, and where the code generator for it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """A machine kernels can be generated for.

    Attributes:
        name: what `--target` takes.
        summary: one line for `qcompile targets`.
        backend: "module:Class" of the `qcompile.target.backend.Backend`; imported only when it is needed.
        weight_bits, act_bits: the precisions the kernels support; the planner may choose only these.
        weight_steps, act_steps: widths at which the choice of kernels changes; all widths from one step up to the
            next share their measurements (of the wider one).
        channel_block: a channels-last image has its pixel stride rounded up to a multiple of this (see `pixel`).
        alignment: of every buffer in the arena, bytes.
        features: instruction sets the kernels need, as the operating system names them.
        options: what the backend needs to know (target string of the compiler, vector width, …).
        peak_macs_per_second: per thread; the roofline used only where nothing can be measured.
        bytes_per_second: memory bandwidth per thread for the same purpose.
    """

    name: str
    summary: str
    backend: str
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    act_bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    weight_steps: tuple[int, ...] = (8,)
    act_steps: tuple[int, ...] = (8,)
    channel_block: int = 1
    alignment: int = 64
    features: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    peak_macs_per_second: float = 1e9
    bytes_per_second: float = 1e10

    def pixel(self, channels: int) -> int:
        """Stride between pixels of a channels-last image: up to 4 channels lie close, more fill blocks.

        Close pixels make the taps of a kernel row one run of bytes for the first layer's dot products.
        """
        if channels <= 4:
            return channels
        return -(-channels // self.channel_block) * self.channel_block
