"""A target as data: what the machine offers, and where the code generator for it lives."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

_ALIASES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm"}


def host_architecture() -> str:
    """This machine's: `x86_64`, `aarch64`, `arm`, or what else its operating system calls it."""
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


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
        close_block: likewise, where an image has at most 4 channels.
        alignment: of every buffer in the arena, bytes.
        architecture: of the processor, as `host_architecture` names it; empty for what runs anywhere.
        features: instruction sets the kernels need, as the operating system names them.
        toolchain: "module:function" that takes `options` and returns the command that makes libraries for it, or raises
            TargetError with a hint what to install; empty where nothing but Python is needed.
        runtime: "module:callable" of (folder, integer graph) → `qcompile.target.backend.Executable` that runs what the
            backend built without the backend, which is slow and large to import; empty where there is none.
        options: what the backend needs to know (target string of the compiler, vector width, …).
        peak_macs_per_second: per thread; the roofline used only where nothing can be measured.
        bytes_per_second: memory bandwidth per thread for the same purpose.
        winograd_inputs, winograd_weights: largest activation, and largest magnitude of a transformed weight, for which
            3×3 layers run as exact Winograd F(2×2, 3×3) in bytes; 0 where the target has no such kernel.
    """

    name: str
    summary: str
    backend: str
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    act_bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    weight_steps: tuple[int, ...] = (8,)
    act_steps: tuple[int, ...] = (8,)
    channel_block: int = 1
    close_block: int = 1
    alignment: int = 64
    architecture: str = ""
    features: tuple[str, ...] = ()
    toolchain: str = ""
    runtime: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    peak_macs_per_second: float = 1e9
    bytes_per_second: float = 1e10
    winograd_inputs: int = 0
    winograd_weights: int = 0

    def pixel(self, channels: int) -> int:
        """Stride between pixels of a channels-last image: up to 4 channels lie close, more fill blocks.

        Close pixels make the taps of a kernel row one run of bytes for the first layer's dot products.
        """
        block = self.close_block if channels <= 4 else self.channel_block
        return -(-channels // block) * block
