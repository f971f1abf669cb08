// The dtypes of numbers in memory: float, bfloat16 and float16. Arithmetic is in float, and results are rounded where
// modeling_phi3.py of transformers rounds them.
#pragma once

#include <cstdint>
#include <cstring>

#include "platform.h"

namespace {

struct bfloat16 {
    uint16_t bits;
};

struct float16 {
    uint16_t bits;
};

INLINE float to_float(float x) { return x; }

INLINE float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T>
T rounded(float x);

template <>
INLINE float rounded<float>(float x) {
    return x;
}

template <>
INLINE bfloat16 rounded<bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(x == x ? nearest_even : 0x7FC0)};
}

template <typename T>
inline float as_stored(float x) {
    return to_float(rounded<T>(x));
}

}  // namespace
