"""Portable C as a target."""

from __future__ import annotations

from qcompile.target.model import Target

C = Target(
    name="c",
    summary="portable C99 for any compiler: microcontrollers, and machines that no other target fits",
    backend="targets.c.backend:CBackend",
    # Working memory is what a small machine has least of: nothing is padded beyond what int32 needs.
    alignment=4,
    toolchain="targets.c.compiler:toolchain",
    options={"linker": "cc|gcc|clang"},
    # One multiply-add in two cycles at about 100 MHz; only where nothing can be measured.
    peak_macs_per_second=5e7,
    bytes_per_second=2e8,
)
