"""x86-64 CPUs: AVX-512 VNNI and AVX2."""
