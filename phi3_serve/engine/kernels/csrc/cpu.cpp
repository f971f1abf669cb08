// The kernels of a forward pass on a CPU, as the C functions that cpu_library.py calls: RMSNorm, rotation, attention
// over the paged cache, SiLU, linear layers with weights in bfloat16, 8 or 4 bits, and adapters. contract.py defines
// all but the linear layers in bfloat16.
//
// Python passes addresses of contiguous numbers. The functions allocate nothing, never fail and keep no state. Each
// splits its work among `threads` threads of the OpenMP runtime that torch has loaded.
//
// A library is one translation unit: a file of levels/ includes this one. The headers have everything in unnamed
// namespaces, so a library exports only what is below, and the compiler may inline and specialise the rest.

#include <cstdint>

#include "adapters.h"
#include "attention.h"
#include "dtypes.h"
#include "kv_cache.h"
#include "panel_formats.h"
#include "panels.h"
#include "quantize.h"
#include "quantized_linear.h"
#include "rms_norm.h"
#include "rotary.h"
#include "silu.h"

#ifdef __AVX512BF16__
#include "bfloat16_linear.h"
#endif

#ifdef __AMX_BF16__
#include "amx/split_linear.h"
#endif

#define EXPORT_ATTEND(T, C, SUFFIX)                                                                                   \
    extern "C" void attend_##SUFFIX(const void *tiles, int64_t num_tiles, const void *query, int64_t query_stride,    \
                                    const void *cache, const float *scales, int64_t head_stride, void *output,        \
                                    int64_t heads, int64_t kv_heads, int64_t dim, float scale, float *scratch,        \
                                    int64_t scratch_size, int threads) {                                              \
        attend(static_cast<const QueryTile *>(tiles), num_tiles, static_cast<const T *>(query), query_stride,         \
               Cache<C>{static_cast<const C *>(cache), scales, head_stride, kv_heads, dim}, static_cast<T *>(output), \
               heads, scale, scratch, scratch_size, threads);                                                         \
    }

#define EXPORT(T, SUFFIX)                                                                                             \
    extern "C" void add_rms_norm_##SUFFIX(void *hidden, const void *delta, const void *weight, void *normed,          \
                                          int64_t rows, int64_t width, float epsilon, int threads) {                  \
        add_rms_norm(static_cast<T *>(hidden), static_cast<const T *>(delta), static_cast<const T *>(weight),         \
                     static_cast<T *>(normed), rows, width, epsilon, threads);                                        \
    }                                                                                                                 \
    extern "C" void silu_product_##SUFFIX(const void *gate_up, void *product, int64_t rows, int64_t width,            \
                                          int threads) {                                                              \
        silu_product(static_cast<const T *>(gate_up), static_cast<T *>(product), rows, width, threads);               \
    }                                                                                                                 \
    extern "C" void rotate_and_store_##SUFFIX(void *qkv, const void *cosine, const void *sine, const int64_t *slots,  \
                                              void *cache, float *, int64_t head_stride, int64_t tokens,              \
                                              int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary,           \
                                              int threads) {                                                          \
        rotate_and_store(static_cast<T *>(qkv), static_cast<const T *>(cosine), static_cast<const T *>(sine), slots,  \
                         WritableCache<T>{static_cast<T *>(cache), head_stride, dim}, tokens, heads, kv_heads, rotary,\
                         threads);                                                                                    \
    }                                                                                                                 \
    extern "C" void rotate_and_store_int8_##SUFFIX(                                                                   \
        void *qkv, const void *cosine, const void *sine, const int64_t *slots, void *cache, float *scales,            \
        int64_t head_stride, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary,            \
        int threads) {                                                                                                \
        rotate_and_store(static_cast<T *>(qkv), static_cast<const T *>(cosine), static_cast<const T *>(sine), slots,  \
                         WritableCacheOfBytes{static_cast<int8_t *>(cache), scales, head_stride, dim}, tokens, heads, \
                         kv_heads, rotary, threads);                                                                  \
    }                                                                                                                 \
    extern "C" void add_low_rank_##SUFFIX(const void *parts, const void *groups, int64_t num_groups,                  \
                                          const int64_t *row_numbers, const double *strengths, int64_t max_parts,     \
                                          float *products, int64_t stride, const void *x, int64_t inputs,             \
                                          void *output, int64_t outputs, int threads) {                               \
        add_low_rank(Adapted<T>{static_cast<const LowRank *>(parts), static_cast<const AdaptedGroup *>(groups),       \
                                num_groups, row_numbers, strengths, max_parts, products, stride,                      \
                                static_cast<const T *>(x), inputs, static_cast<T *>(output), outputs},                \
                     threads);                                                                                        \
    }                                                                                                                 \
    EXPORT_ATTEND(T, T, SUFFIX)                                                                                       \
    EXPORT_ATTEND(T, int8_t, int8_##SUFFIX)

#define EXPORT_QUANTIZED(T, SUFFIX, FORMAT, NAME)                                                                     \
    extern "C" void multiply_##NAME##_##SUFFIX(const void *weight, const void *x, float *packed, void *out,           \
                                               int64_t rows, int64_t inputs, int64_t panels, int threads) {           \
        multiply_quantized(FORMAT{}, static_cast<const char *>(weight), static_cast<const T *>(x), packed,            \
                           static_cast<T *>(out), rows, inputs, panels, threads);                                     \
    }

#define EXPORT_BLOCKED(T, SUFFIX, WEIGHTS, INPUTS, HAS_MINIMA, NAME)                                                  \
    extern "C" void multiply_##NAME##_##SUFFIX(const void *weight, const void *x, float *packed, void *out,           \
                                               int64_t rows, int64_t inputs, int64_t panels, int threads,             \
                                               int64_t groups) {                                                      \
        multiply_quantized(Blocked<WEIGHTS, INPUTS, HAS_MINIMA>{groups}, static_cast<const char *>(weight),           \
                           static_cast<const T *>(x), packed, static_cast<T *>(out), rows, inputs, panels, threads);  \
    }

#define EXPORT_QUANTIZE(T, SUFFIX, NAME, SCALE)                                                                       \
    extern "C" void quantize_##NAME##_##SUFFIX(const void *weight, void *values, void *scales, int64_t outputs,       \
                                               int64_t inputs, int threads) {                                         \
        quantize_##NAME(static_cast<const T *>(weight), static_cast<int8_t *>(values), static_cast<SCALE *>(scales),  \
                        outputs, inputs, threads);                                                                    \
    }

#define EXPORT_FORMATS(T, SUFFIX)                                                                                     \
    EXPORT_QUANTIZED(T, SUFFIX, Int8, int8)                                                                           \
    EXPORT_QUANTIZED(T, SUFFIX, Int4<bfloat16>, int4)                                                                 \
    EXPORT_QUANTIZED(T, SUFFIX, Int4<float>, int4_float_scales)                                                       \
    EXPORT_QUANTIZED(T, SUFFIX, Int4<float16>, int4_float16_scales)                                                   \
    EXPORT_BLOCKED(T, SUFFIX, Nibbles, 32, true, blocked_int4_32_minima)                                              \
    EXPORT_BLOCKED(T, SUFFIX, Bytes, 32, true, blocked_int8_32_minima)                                                \
    EXPORT_BLOCKED(T, SUFFIX, Bytes, 32, false, blocked_int8_32)                                                      \
    EXPORT_BLOCKED(T, SUFFIX, Bytes, 16, false, blocked_int8_16)                                                      \
    EXPORT_QUANTIZE(T, SUFFIX, int8, float)                                                                           \
    EXPORT_QUANTIZE(T, SUFFIX, int4, bfloat16)

EXPORT_FORMATS(float, float32)
EXPORT_FORMATS(bfloat16, bfloat16)

EXPORT_QUANTIZED(float, float32, Half<bfloat16>, bfloat16)
EXPORT_QUANTIZED(float, float32, Half<float16>, float16)

EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)

#ifdef __AVX512BF16__
extern "C" void multiply_bfloat16(const void *weight, const void *x, void *pairs_of_x, void *out, int64_t rows,
                                  int64_t inputs, int64_t outputs, int threads) {
    multiply(static_cast<const bfloat16 *>(weight), static_cast<const bfloat16 *>(x),
             static_cast<uint32_t *>(pairs_of_x), static_cast<bfloat16 *>(out), rows, inputs, outputs, threads);
}
#endif

#ifdef __AMX_BF16__
extern "C" void multiply_split_bfloat16(const void *weight, const void *x, float *packed, void *out, int64_t rows,
                                        int64_t inputs, int64_t panels, int threads) {
    multiply_split(static_cast<const bfloat16 *>(weight), static_cast<const float *>(x), packed,
                   static_cast<float *>(out), rows, inputs, panels, threads);
}
#endif
