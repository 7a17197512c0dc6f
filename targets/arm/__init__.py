"""32-bit Arm CPUs with NEON."""
