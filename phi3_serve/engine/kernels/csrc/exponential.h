// The exponential function, which SiLU and the softmax of attention share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "platform.h"
#include "vectors.h"

namespace {

// e^x with a relative error of 1e-7. It has no branch, so loops over it are vectorised. Cephes, expf.c (S. L. Moshier).
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = std::rint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// The same for each lane, for functions without -fassociative-math: there GCC does not vectorise loops over the one
// above, because the pragma turns off -fno-trapping-math, too.
INLINE Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    const Floats power = x * 1.44269504f;
    const Words nearest = __builtin_convertvector(power + (power < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f), Words);
    const Floats n = __builtin_convertvector(nearest, Floats);
    const Floats r = multiply_add(n, Floats{} + 2.12194440e-4f, multiply_add(n, Floats{} - 0.693359375f, x));
    Floats p = Floats{} + 1.9875691500e-4f;
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = multiply_add(p, r, Floats{} + factor);
    p = multiply_add(p * r, r, r) + 1.0f;
    return p * (Floats)((nearest + 127) << 23);
}

}  // namespace
