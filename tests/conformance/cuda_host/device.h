// What CUDA C++ offers, on the host: a block's threads are fibers that wait for each other where a device's do.
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __CUDA_ARCH__ 750  // Asynchronous copies are then plain ones.
#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)

struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

struct Position { unsigned x, y; };
static Position blockIdx, threadIdx, gridDim, blockDim;

namespace host {
enum Wait { RUNNING, WARP, BLOCK, DONE };
constexpr int MOST = 1024, LANES = 32, STACK = 1 << 16, WORDS = 8;
struct Thread { jmp_buf place; ucontext_t context; Wait wait; const char *reason; int turn; };
static Thread threads[MOST];
static char stacks[MOST][STACK] __attribute__((aligned(64)));
static int32_t slots[2][MOST][WORDS];
static const void *addresses[2][MOST];
static jmp_buf scheduler;
static int current;
static void (*body)();

static void pause(Wait wait, const char *reason) {
  Thread &me = threads[current];
  me.wait = wait, me.reason = reason;
  if (!_setjmp(me.place)) _longjmp(scheduler, 1);
}
static void begin() {
  body();
  threads[current].wait = DONE;
  _longjmp(scheduler, 1);
}
// What all lanes of a warp give in; they go on together.  Returns which half of `slots` holds it.
static int together(const char *reason, const int32_t *words, int count, const void *address = nullptr) {
  int half = threads[current].turn++ & 1;
  if (count) memcpy(slots[half][current], words, count * sizeof *words);
  addresses[half][current] = address;
  pause(WARP, reason);
  return half;
}
static void resume(int i, bool first) {
  current = i, threadIdx.x = i;
  threads[i].wait = RUNNING;
  if (_setjmp(scheduler)) return;
  if (first) setcontext(&threads[i].context); else _longjmp(threads[i].place, 1);
}
// 0, or 1 where threads wait for others that never come.
static int block(int count) {
  for (int i = 0; i < count; ++i) {
    getcontext(&threads[i].context);
    threads[i].context.uc_stack.ss_sp = stacks[i], threads[i].context.uc_stack.ss_size = STACK;
    threads[i].context.uc_link = nullptr, threads[i].turn = 0;
    makecontext(&threads[i].context, begin, 0);
    resume(i, true);
  }
  for (;;) {
    int done = 0, barrier = 0, moved = 0;
    for (int i = 0; i < count; ++i) done += threads[i].wait == DONE, barrier += threads[i].wait == BLOCK;
    if (done == count) return 0;
    if (barrier == count) {
      for (int i = 0; i < count; ++i) resume(i, false);
      continue;
    }
    for (int w = 0; w < count; w += LANES) {
      int same = 0;
      for (int i = w; i < w + LANES; ++i)
        same += threads[i].wait == WARP && !strcmp(threads[i].reason, threads[w].reason);
      if (same == LANES) for (int i = w; i < w + LANES; ++i) resume(i, false), ++moved;
    }
    if (!moved) return 1;
  }
}
static inline uint8_t u8(int32_t word, int i) { return (uint8_t)((uint32_t)word >> (8 * i)); }
static inline int8_t s8(int32_t word, int i) { return (int8_t)u8(word, i); }
static inline int32_t add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
}  // namespace host

static inline void __syncthreads() { host::pause(host::BLOCK, "__syncthreads"); }
static inline void __threadfence() {}
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldg(const T *p) { return *p; }
static inline uint64_t __cvta_generic_to_shared(const void *p) { return (uint64_t)p; }
static inline unsigned atomicInc(unsigned *counter, unsigned last) {
  unsigned before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t both = a | (uint64_t)b << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
static inline int __shfl_xor_sync(unsigned, int value, int other) {
  int half = host::together("__shfl_xor_sync", &value, 1);
  return host::slots[half][host::current ^ other][0];
}
