"""NVIDIA GPUs as data: one target for each architecture, and one binary for all of them."""

from __future__ import annotations

from qcompile.target.model import Target
from targets.cuda.devices import DEVICES

ARCHITECTURES: tuple[str, ...] = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
"""Those that code is generated for, oldest first."""

_FEATURE = "cuda"
"""What a machine has that can run these: a driver with at least one device."""


def _target(name: str, generation: str, *architectures: str) -> Target:
    gpu = DEVICES[architectures[0]]
    return Target(
        name=name,
        summary=f"NVIDIA {generation} (unmeasured costs: {gpu.name})",
        backend="targets.cuda.backend:CudaBackend",
        # Pixels of 16 bytes: what one thread copies at once, and half of what one tensor core instruction reads.
        channel_block=16,
        # What the narrowest asynchronous copy copies.
        close_block=4,
        # Weights of at most 4 bits are packed, and with activations of at most 4 bits multiplied as such.
        weight_steps=(4, 8),
        act_steps=(4, 8),
        alignment=256,
        architecture="nvidia",
        features=(_FEATURE,),
        toolchain="targets.cuda.build:toolchain",
        options={"architectures": " ".join(architectures)},
        peak_macs_per_second=gpu.macs_per_second,
        bytes_per_second=gpu.memory_bytes_per_second,
    )


CUDA = _target("cuda", "GPUs, every architecture in one artifact", *ARCHITECTURES)
CUDA_SM_75 = _target("cuda:sm_75", "Turing", "sm_75")
CUDA_SM_80 = _target("cuda:sm_80", "Ampere, data centre", "sm_80")
CUDA_SM_86 = _target("cuda:sm_86", "Ampere", "sm_86")
CUDA_SM_89 = _target("cuda:sm_89", "Ada", "sm_89")
CUDA_SM_90 = _target("cuda:sm_90", "Hopper", "sm_90")
