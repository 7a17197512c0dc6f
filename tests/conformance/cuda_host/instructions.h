// The functions of the prelude that are a device's instructions.  An instruction that is missing here does not assemble.
static inline int32_t host_dot4(int32_t acc, int32_t x, int32_t w) {
  for (int i = 0; i < 4; ++i) acc = host::add(acc, host::u8(x, i) * host::s8(w, i));
  return acc;
}
static inline void host_ldmatrix4(int32_t *to, const void *row) {
  auto *rows = host::addresses[host::together("q_ldmatrix4", nullptr, 0, row)];
  int warp = host::current / host::LANES * host::LANES, lane = host::current - warp;
  for (int i = 0; i < 4; ++i) memcpy(&to[i], (const char *)rows[warp + 8 * i + lane / 4] + lane % 4 * 4, 4);
}
// The inner dimension comes in words of `parts` elements; `product` multiplies one of each.
template <int parts, class Product>
static void matrix(const char *name, int32_t *acc, const int32_t *words, Product product) {
  auto *mine = host::slots[host::together(name, words, 6)];
  int warp = host::current / host::LANES * host::LANES, lane = host::current - warp;
  for (int i = 0; i < 4; ++i) {
    int group = lane / 4, column = lane % 4 * 2 + i % 2, below = i / 2;
    int32_t sum = acc[i];
    for (int t = 0; t < 4; ++t) {
      const int32_t *a = mine[warp + group * 4 + t], *b = mine[warp + column * 4 + t] + 4;
      for (int k = 0; k < parts; ++k)
        sum = host::add(sum, product(a[below], b[0], k) + product(a[2 + below], b[1], k));
    }
    acc[i] = sum;
  }
}
static inline void host_mma(int32_t *acc, int32_t a0, int32_t a1, int32_t a2, int32_t a3, int32_t b0, int32_t b1) {
  const int32_t words[6] = {a0, a1, a2, a3, b0, b1};
  matrix<4>("q_mma", acc, words, [](int32_t a, int32_t b, int k) { return host::u8(a, k) * host::s8(b, k); });
}
static inline void host_mma_s4(int32_t *acc, int32_t a0, int32_t a1, int32_t a2, int32_t a3, int32_t b0, int32_t b1) {
  const int32_t words[6] = {a0, a1, a2, a3, b0, b1};
  matrix<8>("q_mma_s4", acc, words, [](int32_t a, int32_t b, int k) {
    int32_t x = (int32_t)((uint32_t)a >> 4 * k & 15), y = (int32_t)((uint32_t)b >> 4 * k & 15);
    return x * (y > 7 ? y - 16 : y);
  });
}

#define q_dot4 host_dot4
#define q_ldmatrix4 host_ldmatrix4
#define q_mma host_mma
#define q_mma_s4 host_mma_s4
