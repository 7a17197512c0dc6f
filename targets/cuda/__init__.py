"""NVIDIA GPUs: kernels of the statement builder as CUDA, launched through the driver."""
