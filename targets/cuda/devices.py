"""The devices whose data stand for an architecture where nothing can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device by its data sheet.

    Attributes:
        name: of the product.
        multiprocessors: how many.
        clock: hertz under load (the data sheet's boost clock).
        tensor_macs: dense multiply-adds of 8 bits of one multiprocessor's tensor cores in a clock.
        reached: what `mma` reaches of that, where only other instructions reach all of it.
        nibble_speed: multiply-adds of 4 bits in the time of one of 8 bits.
        lanes: 32-bit integer operations of one multiprocessor in a clock; a dot product of four bytes is one.
        shared_bytes: shared memory of a multiprocessor.
        threads: most of a multiprocessor at once.
        cache_bytes: of the far cache (L2).
        memory_bytes_per_second: of device memory.
    """

    name: str
    multiprocessors: int
    clock: float
    tensor_macs: int
    reached: float
    nibble_speed: float
    lanes: int
    shared_bytes: int
    threads: int
    cache_bytes: int
    memory_bytes_per_second: float

    @property
    def macs_per_second(self) -> float:
        """Of 8 bits, dense, by all tensor cores."""
        return self.multiprocessors * self.clock * self.tensor_macs


# Multiprocessors, clocks, tensor cores, caches and memory: the vendor's data sheets of these products and the white
# papers of their architectures; shared memory and threads: CUDA C++ Programming Guide, "Compute Capabilities".
# What `mma` reaches on Hopper, where `wgmma` reaches the peak: Luo et al. 2024, "Benchmarking and Dissecting the Nvidia
# Hopper GPU Architecture via Microbenchmarking" (about 0.6).  Hopper's tensor cores have no 4 bits.
DEVICES: Mapping[str, Gpu] = {
    "sm_75": Gpu("T4", 40, 1.59e9, 1024, 1.0, 2.0, 64, 64 << 10, 1024, 4 << 20, 320e9),
    "sm_80": Gpu("A100", 108, 1.41e9, 2048, 1.0, 2.0, 64, 164 << 10, 2048, 40 << 20, 1555e9),
    "sm_86": Gpu("A10", 72, 1.695e9, 1024, 1.0, 2.0, 64, 100 << 10, 1536, 6 << 20, 600e9),
    "sm_89": Gpu("L4", 58, 2.04e9, 1024, 1.0, 2.0, 64, 100 << 10, 1536, 48 << 20, 300e9),
    "sm_90": Gpu("H100", 132, 1.83e9, 4096, 0.6, 0.5, 64, 228 << 10, 2048, 50 << 20, 3350e9),
}
