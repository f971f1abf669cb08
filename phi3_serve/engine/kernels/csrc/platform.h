// What depends on the compiler and on the level of instructions: the intrinsics, how wide a register is, how a function
// is inlined. It needs GCC, because Clang ignores `#pragma GCC optimize`.
//
// The flags in setup.py let the compiler reorder sums (-fassociative-math), which vectorises loops over floats.
// Headers whose sums must have a fixed order turn that off for their functions, so that the result of a row does not
// depend on the number of rows. What is inlined has the flags of the function that it is inlined into, so all functions
// on the way need them. Attention turns off, too, that the compiler fuses multiplications with additions
// (-ffp-contract), because it need not do so in all instances of a template.
#pragma once

#ifdef __AVX2__
#pragma GCC diagnostic push  // GCC 12 warns of its own intrinsics, which begin with undefined registers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <cstdint>

// Functions with other options call these, and a compiler would not inline them by itself.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats in a register
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

constexpr int64_t CACHE_LINE = 64;  // bytes

}  // namespace
