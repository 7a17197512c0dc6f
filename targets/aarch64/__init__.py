"""64-bit Arm CPUs: plain NEON, the dot products of Armv8.2, and the matrix products of Armv8.6."""
