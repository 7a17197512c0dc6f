"""What generated kernels call on the device, as CUDA text."""

from __future__ import annotations

PRELUDE = r"""
#include <stdint.h>
#define Q_DEVICE static __device__ __forceinline__

Q_DEVICE int32_t q_min32(int32_t a, int32_t b) { return a < b ? a : b; }
Q_DEVICE int32_t q_max32(int32_t a, int32_t b) { return a > b ? a : b; }
Q_DEVICE int64_t q_min64(int64_t a, int64_t b) { return a < b ? a : b; }
Q_DEVICE int64_t q_max64(int64_t a, int64_t b) { return a > b ? a : b; }

Q_DEVICE void q_sync() { __syncthreads(); }

/* 16 bytes from global to shared memory, there after the wait for their group and a barrier. */
Q_DEVICE void q_copy16(void *to, const void *from) {
#if __CUDA_ARCH__ >= 800
  uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  *(int4 *)to = *(const int4 *)from;
#endif
}

Q_DEVICE void q_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

Q_DEVICE void q_wait_but_one() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

Q_DEVICE void q_store16(void *to, const void *from) { *(int4 *)to = *(const int4 *)from; }

Q_DEVICE void q_fill16(void *to, int32_t byte) {
  int32_t word = byte * 0x01010101;
  *(int4 *)to = make_int4(word, word, word, word);
}

/* acc += first (16x32 uint8, row-major) times second (32x8 int8, column-major), modulo 2^32. */
Q_DEVICE void q_mma(int32_t *acc, int32_t a0, int32_t a1, int32_t a2, int32_t a3, int32_t b0, int32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
#define Q_MMA8816(c0, c1, a, b) \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
               : "+r"(c0), "+r"(c1) : "r"(a), "r"(b))
  Q_MMA8816(acc[0], acc[1], a0, b0);
  Q_MMA8816(acc[0], acc[1], a2, b1);
  Q_MMA8816(acc[2], acc[3], a1, b0);
  Q_MMA8816(acc[2], acc[3], a3, b1);
#undef Q_MMA8816
#endif
}
"""
"""What every file of kernels begins with."""
