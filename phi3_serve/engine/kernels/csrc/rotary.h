// The rotary position embedding of queries and keys, with the write of keys and values into the cache. `Writable` is
// one of the two writable caches of kv_cache.h. Each token is the work of one thread.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace {

// Rotates the first `rotary` dimensions of queries and keys in place; the two of a pair are rotary / 2 apart (rope.py).
// Then stores keys and values in their slots of the cache.
template <typename T, typename Writable>
void rotate_and_store(T *qkv, const T *cosine, const T *sine, const int64_t *slots, const Writable &cache,
                      int64_t tokens, int64_t heads, int64_t kv_heads, int64_t rotary, int threads) {
    const int64_t dim = cache.dim;
    const int64_t half = rotary / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        T *const row = qkv + token * (heads + 2 * kv_heads) * dim;
        const T *c = cosine + token * rotary;
        const T *s = sine + token * rotary;
        for (int64_t head = 0; head < heads + kv_heads; ++head) {
            T *x = row + head * dim;
#pragma omp simd
            for (int64_t i = 0; i < half; ++i) {
                const float a = to_float(x[i]), b = to_float(x[i + half]);
                x[i] = rounded<T>(as_stored<T>(a * to_float(c[i])) + as_stored<T>(b * to_float(s[i])));
                x[i + half] =
                    rounded<T>(as_stored<T>(b * to_float(c[i + half])) + as_stored<T>(a * to_float(s[i + half])));
            }
        }
        for (int64_t head = 0; head < 2 * kv_heads; ++head)
            cache.store(head, slots[token], row + (heads + head) * dim);
    }
}

}  // namespace
