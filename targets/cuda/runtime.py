"""What generated kernels call on the device, as CUDA text."""

from __future__ import annotations

PRELUDE = r"""
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INT64_C(value) value##LL
#define INT32_MIN (-2147483647 - 1)
#define INT64_MIN (-9223372036854775807LL - 1)
#else
#include <stdint.h>
#endif
#define Q_DEVICE static __device__ __forceinline__

Q_DEVICE int32_t q_min32(int32_t a, int32_t b) { return a < b ? a : b; }
Q_DEVICE int32_t q_max32(int32_t a, int32_t b) { return a > b ? a : b; }
Q_DEVICE int64_t q_min64(int64_t a, int64_t b) { return a < b ? a : b; }
Q_DEVICE int64_t q_max64(int64_t a, int64_t b) { return a > b ? a : b; }

Q_DEVICE void q_sync() { __syncthreads(); }

/* Bytes from global to shared memory, there after the wait for their group and a barrier. */
#if __CUDA_ARCH__ >= 800
#define Q_COPY(bytes, kind, type)                                                                     \
  Q_DEVICE void q_copy##bytes(void *to, const void *from) {                                           \
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);                                        \
    asm volatile("cp.async." kind " [%0], [%1], " #bytes ";" ::"r"(address), "l"(from) : "memory");    \
  }
/* All groups but the newest `but` have arrived. */
#define Q_WAIT(but) \
  Q_DEVICE void q_wait##but() { asm volatile("cp.async.wait_group " #but ";" ::: "memory"); }
Q_DEVICE void q_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#else
#define Q_COPY(bytes, kind, type) \
  Q_DEVICE void q_copy##bytes(void *to, const void *from) { *(type *)to = *(const type *)from; }
#define Q_WAIT(but) \
  Q_DEVICE void q_wait##but() {}
Q_DEVICE void q_commit() {}
#endif
/* The same in two steps: where nothing is asynchronous, what was fetched stays in registers until it lands. */
#if __CUDA_ARCH__ >= 800
#define Q_FETCH(bytes, type, assign, put)                                                                            \
  Q_DEVICE void q_fetch##bytes(int32_t *held, void *to, const void *from) { (void)held, q_copy##bytes(to, from); }   \
  Q_DEVICE void q_land##bytes(void *to, const int32_t *held) { (void)to, (void)held; }
#else
#define Q_FETCH(bytes, type, assign, put)                                                      \
  Q_DEVICE void q_fetch##bytes(int32_t *held, void *to, const void *from) {                    \
    const type words = *(const type *)from;                                                    \
    (void)to, assign;                                                                          \
  }                                                                                            \
  Q_DEVICE void q_land##bytes(void *to, const int32_t *held) { *(type *)to = put; }
#endif
Q_COPY(4, "ca.shared.global", int)
Q_COPY(8, "ca.shared.global", int2)
/* What lies beside 64 bytes of a chunk is the next chunk. */
Q_COPY(16, "cg.shared.global.L2::128B", int4)
Q_WAIT(0)
Q_WAIT(1)
Q_WAIT(2)
Q_WAIT(3)
Q_WAIT(4)
Q_FETCH(4, int, (held[0] = words), held[0])
Q_FETCH(8, int2, (held[0] = words.x, held[1] = words.y), make_int2(held[0], held[1]))
Q_FETCH(16, int4, (held[0] = words.x, held[1] = words.y, held[2] = words.z, held[3] = words.w),
        make_int4(held[0], held[1], held[2], held[3]))
#undef Q_COPY
#undef Q_WAIT
#undef Q_FETCH

Q_DEVICE void q_put(void *to, int32_t word) { *(int32_t *)to = word; }

Q_DEVICE void q_put16(void *to, int32_t a, int32_t b, int32_t c, int32_t d) { *(int4 *)to = make_int4(a, b, c, d); }

/* 16 bytes into registers. */
Q_DEVICE void q_load16(int32_t *to, const void *from) {
  const int4 words = *(const int4 *)from;
  to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

Q_DEVICE void q_store4(void *to, const void *from) { *(int *)to = *(const int *)from; }
Q_DEVICE void q_store8(void *to, const void *from) { *(int2 *)to = *(const int2 *)from; }
Q_DEVICE void q_store16(void *to, const void *from) { *(int4 *)to = *(const int4 *)from; }
Q_DEVICE void q_words2(void *to, int32_t low, int32_t high) { *(int2 *)to = make_int2(low, high); }
Q_DEVICE void q_bytes2(void *to, int32_t low, int32_t high) { *(uint16_t *)to = (uint16_t)(low | high << 8); }

Q_DEVICE void q_fill16(void *to, int32_t byte) {
  int32_t word = byte * 0x01010101;
  *(int4 *)to = make_int4(word, word, word, word);
}

/* Values: a word; bytes of two words by number; the other one's of a pair of threads; acc + uint8 times int8. */
Q_DEVICE int32_t q_word(const void *from) { return *(const int32_t *)from; }
Q_DEVICE int32_t q_permute(int32_t a, int32_t b, int32_t selector) { return (int32_t)__byte_perm(a, b, selector); }
Q_DEVICE int32_t q_swap(int32_t value) { return __shfl_xor_sync(0xffffffffu, value, 1); }

Q_DEVICE int32_t q_dot4(int32_t acc, int32_t x, int32_t w) {
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(acc) : "r"(x), "r"(w));
  return acc;
}

/* Sums that blocks share: four registers to memory, and added from memory that another block wrote. */
Q_DEVICE void q_put4(int32_t *to, const int32_t *from) { *(int4 *)to = make_int4(from[0], from[1], from[2], from[3]); }

Q_DEVICE void q_add4(int32_t *acc, const int32_t *from) {
  const int4 words = __ldcg((const int4 *)from);
  acc[0] += words.x, acc[1] += words.y, acc[2] += words.z, acc[3] += words.w;
}

Q_DEVICE void q_fence() { __threadfence(); }

/* The arrivals at a counter before this one; the last of last + 1 leaves it at zero. */
Q_DEVICE void q_arrive(int32_t *counter, int32_t last, int32_t *ticket) {
  *ticket = (int32_t)atomicInc((unsigned int *)counter, (unsigned int)last);
}

/* Four matrices of 8 rows of 16 bytes: lane 8i + j names row j of matrix i, lane 4g + t gets word t of each row g. */
Q_DEVICE void q_ldmatrix4(int32_t *to, const void *row) {
  uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

/* acc += first (16 rows) times second (8 columns), modulo 2^32: 32 uint8 times int8, or 64 uint4 times int4. */
#if __CUDA_ARCH__ >= 800
#define Q_MMA(name, shape, types)                                                                           \
  Q_DEVICE void name(int32_t *acc, int32_t a0, int32_t a1, int32_t a2, int32_t a3, int32_t b0, int32_t b1) { \
    asm volatile("mma.sync.aligned." shape ".row.col.s32." types ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "       \
                 "{%8,%9}, {%0,%1,%2,%3};"                                                                  \
                 : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])                                    \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                    \
  }
Q_MMA(q_mma, "m16n8k32", "u8.s8")
Q_MMA(q_mma_s4, "m16n8k64", "u4.s4")
#else
#define Q_QUARTER(c0, c1, shape, types, a, b)                                                           \
  asm volatile("mma.sync.aligned." shape ".row.col.s32." types ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
               : "+r"(c0), "+r"(c1) : "r"(a), "r"(b))
#define Q_MMA(name, shape, types)                                                                           \
  Q_DEVICE void name(int32_t *acc, int32_t a0, int32_t a1, int32_t a2, int32_t a3, int32_t b0, int32_t b1) { \
    Q_QUARTER(acc[0], acc[1], shape, types, a0, b0);                                                        \
    Q_QUARTER(acc[0], acc[1], shape, types, a2, b1);                                                        \
    Q_QUARTER(acc[2], acc[3], shape, types, a1, b0);                                                        \
    Q_QUARTER(acc[2], acc[3], shape, types, a3, b1);                                                        \
  }
Q_MMA(q_mma, "m8n8k16", "u8.s8")
Q_MMA(q_mma_s4, "m8n8k32", "u4.s4")
#undef Q_QUARTER
#endif
#undef Q_MMA
"""
"""What every file of kernels begins with."""
