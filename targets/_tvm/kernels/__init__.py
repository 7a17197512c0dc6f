"""Kernels shared by the CPU targets: one file per family of operators."""
