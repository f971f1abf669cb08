// One layer of the paged key-value cache, to write to and to read from. Keys and values have the dtype of the
// activations, or 8 bits with a scale for each token and head (kv_cache.py).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "platform.h"

namespace {

constexpr int64_t BLOCK_SIZE = 16;  // tokens; block_manager.py has the same constant
constexpr float LARGEST_BYTE = 127.0f;
constexpr float SMALLEST_KEY = 1e-30f;  // a head without larger numbers is 0; kv_cache.py has the same constant

// One layer of the key-value cache, [2 * kv_heads, slots, dim]: the heads of the keys, then of the values.
template <typename T>
struct WritableCache {
    T *start;
    int64_t head_stride;
    int64_t dim;

    void store(int64_t head, int64_t slot, const T *x) const {
        std::memcpy(start + head * head_stride + slot * dim, x, dim * sizeof(T));
    }
};

// The same in 8 bits, with scales [2 * kv_heads, slots].
struct WritableCacheOfBytes {
    int8_t *start;
    float *scales;
    int64_t head_stride;
    int64_t dim;

    // As `rounded` of kv_cache.py rounds. What is not finite makes the scale nan.
    template <typename T>
    void store(int64_t head, int64_t slot, const T *x) const {
        float largest = 0.0f, zero = 0.0f;
        for (int64_t i = 0; i < dim; ++i) {
            largest = std::max(largest, std::fabs(to_float(x[i])));
            zero += to_float(x[i]) * 0.0f;
        }
        const bool is_zero = largest < SMALLEST_KEY;
        const float inverse = is_zero ? 0.0f : LARGEST_BYTE / largest;
        scales[head * (head_stride / dim) + slot] = (is_zero ? 0.0f : largest * (1.0f / LARGEST_BYTE)) + zero;
        int8_t *const values = start + head * head_stride + slot * dim;
        for (int64_t i = 0; i < dim; ++i)
            values[i] = static_cast<int8_t>(static_cast<int32_t>(std::rint(to_float(x[i]) * inverse)));
    }
};

// Keys or values of one head, [slots, dim]. Bytes are multiplied by the scale of their slot.
template <typename C>
struct Head {
    const C *numbers;
    const float *scales;  // only of bytes
};

// Keys and values of one layer, [2 * kv_heads, blocks, BLOCK_SIZE, dim]: the heads of the keys, then of the values.
template <typename C>
struct Cache {
    const C *start;
    const float *scales;
    int64_t head_stride;
    int64_t kv_heads;
    int64_t dim;

    Head<C> keys(int64_t head) const { return {start + head * head_stride, scales + head * (head_stride / dim)}; }
    Head<C> values(int64_t head) const { return keys(kv_heads + head); }
};

template <typename C>
inline void prefetch_block(const Head<C> &head, int64_t block, int64_t dim) {
    const char *at = reinterpret_cast<const char *>(head.numbers + block * BLOCK_SIZE * dim);
    for (const char *end = at + BLOCK_SIZE * dim * sizeof(C); at < end; at += CACHE_LINE) __builtin_prefetch(at);
    if (std::is_same_v<C, int8_t>) __builtin_prefetch(head.scales + block * BLOCK_SIZE);
}

}  // namespace
