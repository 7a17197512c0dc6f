"""NVIDIA GPUs as data: one target for each architecture, and one binary for all of them."""

from __future__ import annotations

from qcompile.target.model import Target

ARCHITECTURES: tuple[str, ...] = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
"""Those that code is generated for, oldest first."""

_FEATURE = "cuda"
"""What a machine has that can run these: a driver with at least one device."""


def _target(name: str, summary: str, architectures: str, macs: float, bandwidth: float) -> Target:
    return Target(
        name=name,
        summary=summary,
        backend="targets.cuda.backend:CudaBackend",
        # Pixels of 16 bytes: what one thread copies at once, and half of what one tensor core instruction reads.
        channel_block=16,
        alignment=256,
        architecture="nvidia",
        features=(_FEATURE,),
        toolchain="targets.cuda.build:toolchain",
        options={"architectures": architectures},
        peak_macs_per_second=macs,
        bytes_per_second=bandwidth,
    )


# Dense 8-bit multiply-adds and memory bandwidth of one device of each architecture, from the vendor's data
# sheets: the roofline that is used where nothing can be measured.
CUDA = _target("cuda", "NVIDIA GPUs, every architecture in one binary", " ".join(ARCHITECTURES), 65e12, 320e9)
CUDA_SM_75 = _target("cuda:sm_75", "NVIDIA Turing (roofline: T4)", "sm_75", 65e12, 320e9)
CUDA_SM_80 = _target("cuda:sm_80", "NVIDIA Ampere (roofline: A100)", "sm_80", 312e12, 1555e9)
CUDA_SM_86 = _target("cuda:sm_86", "NVIDIA Ampere (roofline: A10)", "sm_86", 125e12, 600e9)
CUDA_SM_89 = _target("cuda:sm_89", "NVIDIA Ada (roofline: L4)", "sm_89", 121e12, 300e9)
CUDA_SM_90 = _target("cuda:sm_90", "NVIDIA Hopper (roofline: H100)", "sm_90", 989e12, 3350e9)
