// The kernels of a forward pass on a CPU: RMSNorm, rotation, attention over the paged cache, SiLU, and linear layers
// with weights in bfloat16, 8 or 4 bits. contract.py defines all but those in bfloat16.
//
// Python passes addresses of contiguous numbers. The functions allocate nothing, never fail and keep no state. Each
// splits its work among `threads` threads of the OpenMP runtime that torch has loaded. Numbers are float or bfloat16 in
// memory and float in registers; they are rounded where modeling_phi3.py of transformers rounds them.

#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

struct bfloat16 {
    uint16_t bits;
};

struct float16 {
    uint16_t bits;
};

// Functions with other options call these, and a compiler would not inline them by itself.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

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

// e^x with a relative error of 1e-7. It has no branch, so loops over it are vectorised. Cephes, expf.c (S. L. Moshier).
inline float exponential(float x) {
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

// hidden += delta; normed = weight * hidden / rms(hidden). All [rows, width].
template <typename T>
void add_rms_norm(T *hidden, const T *delta, const T *weight, T *normed, int64_t rows, int64_t width, float epsilon,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        T *h = hidden + row * width;
        const T *d = delta + row * width;
        for (int64_t i = 0; i < width; ++i) h[i] = rounded<T>(to_float(h[i]) + to_float(d[i]));
        float squares = 0.0f;
        for (int64_t i = 0; i < width; ++i) squares += to_float(h[i]) * to_float(h[i]);
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
        T *out = normed + row * width;
        for (int64_t i = 0; i < width; ++i)
            out[i] = rounded<T>(to_float(weight[i]) * as_stored<T>(to_float(h[i]) * factor));
    }
}

// product [rows, width] = silu(gate) * up, where gate_up is [rows, 2 * width].
template <typename T>
void silu_product(const T *gate_up, T *product, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T *gate = gate_up + row * 2 * width;
        const T *up = gate + width;
        T *out = product + row * width;
        for (int64_t i = 0; i < width; ++i) {
            const float g = to_float(gate[i]);
            out[i] = rounded<T>(as_stored<T>(g / (1.0f + exponential(-g))) * to_float(up[i]));
        }
    }
}

// Rotates the first `rotary` dimensions of queries and keys in place; the two of a pair are rotary / 2 apart (rope.py).
// Then stores keys and values in their slots of the cache [2 * kv_heads, slots, dim].
template <typename T>
void rotate_and_store(T *qkv, const T *cosine, const T *sine, const int64_t *slots, T *cache, int64_t head_stride,
                      int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary, int threads) {
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
            std::memcpy(cache + head * head_stride + slots[token] * dim, row + (heads + head) * dim, dim * sizeof(T));
    }
}

constexpr int64_t BLOCK_SIZE = 16;  // tokens; block_manager.py has the same constant
constexpr int64_t MAX_HEAD_DIM = 256;  // cpu_library.py has the same constant
constexpr int64_t CACHE_LINE = 64;  // bytes

// A query, by its row in the batch, and the keys that it sees: positions [first, end) of the sequence with the block
// table `table`.
struct AttentionRow {
    int64_t query;
    const int32_t *table;
    int64_t first;
    int64_t end;
};

// Keys and values of one layer, [2 * kv_heads, blocks, BLOCK_SIZE, dim]: the heads of the keys, then of the values.
template <typename T>
struct Cache {
    const T *start;
    int64_t head_stride;
    int64_t kv_heads;
    int64_t dim;

    const T *keys(int64_t head) const { return start + head * head_stride; }
    const T *values(int64_t head) const { return start + (kv_heads + head) * head_stride; }
};

template <typename T>
inline void prefetch_block(const T *head, int64_t block, int64_t dim) {
    const char *at = reinterpret_cast<const char *>(head + block * BLOCK_SIZE * dim);
    for (const char *end = at + BLOCK_SIZE * dim * sizeof(T); at < end; at += CACHE_LINE) __builtin_prefetch(at);
}

// For each block, calls act(keys, count, keys before, block index) with the part of the block that `row` sees.
template <typename T, typename Act>
inline void each_block(const AttentionRow &row, const T *head, int64_t dim, Act act) {
    for (int64_t at = row.first; at < row.end;) {
        const int64_t number = at / BLOCK_SIZE, offset = at % BLOCK_SIZE;
        const int64_t count = std::min(BLOCK_SIZE - offset, row.end - at);
        act(head + (row.table[number] * BLOCK_SIZE + offset) * dim, count, at - row.first, number);
        at += count;
    }
}

// scores[i] = query . keys[i]. The processor cannot predict where the next block is, so the keys of the next block and
// the values of this one are prefetched.
template <typename T>
inline void score(const AttentionRow &row, const float *query, const T *keys, const T *values, int64_t dim,
                  float *scores) {
    const int64_t num_blocks = (row.end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    each_block(row, keys, dim, [&](const T *key, int64_t count, int64_t before, int64_t number) {
        if (number + 1 < num_blocks) prefetch_block(keys, row.table[number + 1], dim);
        prefetch_block(values, row.table[number], dim);
        float *s = scores + before;
        int64_t at = 0;
        for (; at + 4 <= count; at += 4, key += 4 * dim) {  // four independent sums hide the latency of one
            float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
            for (int64_t i = 0; i < dim; ++i) {
                s0 += query[i] * to_float(key[i]);
                s1 += query[i] * to_float(key[i + dim]);
                s2 += query[i] * to_float(key[i + 2 * dim]);
                s3 += query[i] * to_float(key[i + 3 * dim]);
            }
            s[at] = s0, s[at + 1] = s1, s[at + 2] = s2, s[at + 3] = s3;
        }
        for (; at < count; ++at, key += dim) {
            float sum = 0.0f;
            for (int64_t i = 0; i < dim; ++i) sum += query[i] * to_float(key[i]);
            s[at] = sum;
        }
    });
}

// scores[i] = e^(scores[i] - largest score). Returns their sum.
inline float exponentials(float *scores, int64_t count) {
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; ++i) sum += scores[i] = exponential(scores[i] - largest);
    return sum;
}

// answer += sum of weights[i] * values[i].
template <typename T>
inline void add_weighted(const AttentionRow &row, const float *weights, const T *values, int64_t dim, float *answer) {
    each_block(row, values, dim, [&](const T *value, int64_t count, int64_t before, int64_t) {
        const float *w = weights + before;
        int64_t at = 0;
        for (; at + 4 <= count; at += 4, value += 4 * dim)
            for (int64_t i = 0; i < dim; ++i)
                answer[i] += w[at] * to_float(value[i]) + w[at + 1] * to_float(value[i + dim]) +
                             w[at + 2] * to_float(value[i + 2 * dim]) + w[at + 3] * to_float(value[i + 3 * dim]);
        for (; at < count; ++at, value += dim)
            for (int64_t i = 0; i < dim; ++i) answer[i] += w[at] * to_float(value[i]);
    });
}

// Softmax attention of the query of `row` over one head. D is the head's dimension if known at compile time, else 0.
template <typename T, int D>
void attend_head(const AttentionRow &row, const T *query, const T *keys, const T *values, T *output, int64_t given_dim,
                 float scale, float *scores) {
    const int64_t dim = D ? D : given_dim;
    float scaled[D ? D : MAX_HEAD_DIM], answer[D ? D : MAX_HEAD_DIM] = {};
    for (int64_t i = 0; i < dim; ++i) scaled[i] = to_float(query[i]) * scale;
    score(row, scaled, keys, values, dim, scores);
    const float sum = exponentials(scores, row.end - row.first);
    add_weighted(row, scores, values, dim, answer);
    for (int64_t i = 0; i < dim; ++i) output[i] = rounded<T>(answer[i] / sum);
}

// Writes the output [heads, dim] of each row. The rows of one head follow one another, so that keys which several rows
// share stay in the core's cache. `scratch` holds `longest` scores for each thread.
template <typename T, int D>
void attend_rows(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride,
                 const Cache<T> &cache, T *output, int64_t heads, float scale, float *scratch, int64_t longest,
                 int threads) {
    const int64_t group = heads / cache.kv_heads, dim = cache.dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t item = 0; item < cache.kv_heads * num_rows; ++item) {
        const AttentionRow &row = rows[item % num_rows];
        const int64_t kv_head = item / num_rows;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            attend_head<T, D>(row, query + row.query * query_stride + head * dim, cache.keys(kv_head),
                              cache.values(kv_head), output + (row.query * heads + head) * dim, dim, scale,
                              scratch + omp_get_thread_num() * longest);
    }
}

template <typename T>
void attend(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride, const Cache<T> &cache,
            T *output, int64_t heads, float scale, float *scratch, int64_t longest, int threads) {
    auto *const of_dimensions = cache.dim == 64    ? attend_rows<T, 64>
                                : cache.dim == 96  ? attend_rows<T, 96>   // mini
                                : cache.dim == 128 ? attend_rows<T, 128>  // medium
                                                   : attend_rows<T, 0>;
    of_dimensions(rows, num_rows, query, query_stride, cache, output, heads, scale, scratch, longest, threads);
}

#ifdef __AVX512BF16__

constexpr int64_t PANEL_OUTPUTS = 16;  // floats in one register; linear.py has the same constant
constexpr int64_t PANEL_ROWS = 16;  // multiplied in one pass over the weights; linear.py has the same constant
constexpr int64_t PREFETCH_DISTANCE = 4096;  // numbers; further than the processor prefetches by itself

// R rows by P panels: out[r][c] = sum over k of x[k][r] * weight[c][k]. The instruction multiplies pairs of k, so both
// are stored in pairs: x as [pairs][PANEL_ROWS] with a pair in 32 bits, each panel as [pairs][PANEL_OUTPUTS][2].
template <int R, int P>
inline void multiply_block(const bfloat16 *weight, const uint32_t *x, int64_t pairs, bfloat16 *out, int64_t out_stride,
                           const bfloat16 *next) {
    __m512 sum[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; ++k) {
        __builtin_prefetch(next + k * 2 * PANEL_OUTPUTS);
        __m512bh w[P];
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) w[p] = (__m512bh)_mm512_loadu_si512(weight + (p * pairs + k) * 2 * PANEL_OUTPUTS);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(x[k * PANEL_ROWS + r]);
#pragma GCC unroll 3
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], w[p], pair);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + r * out_stride + p * PANEL_OUTPUTS),
                                (__m256i)_mm512_cvtneps_pbh(sum[r][p]));
}

// multiply_block for `rows` <= R.
template <int R, int P>
void multiply_rows(int64_t rows, const bfloat16 *weight, const uint32_t *x, int64_t pairs, bfloat16 *out,
                   int64_t out_stride, const bfloat16 *next) {
    if constexpr (R > 0) {
        if (rows == R)
            multiply_block<R, P>(weight, x, pairs, out, out_stride, next);
        else
            multiply_rows<R - 1, P>(rows, weight, x, pairs, out, out_stride, next);
    }
}

// out [rows, outputs] = x [rows, inputs] * weight^T, with the weight in panels. `pairs_of_x` is scratch for x in pairs.
// Reading the weights from memory takes as long as multiplying sixteen rows by them, so up to sixteen rows take one
// pass over the weights. With more rows, three panels stay in the core's cache until they are multiplied by all rows,
// eight rows at a time, while the next three panels are prefetched.
void multiply(const bfloat16 *weight, const bfloat16 *x, uint32_t *pairs_of_x, bfloat16 *out, int64_t rows,
              int64_t inputs, int64_t outputs, int threads) {
    constexpr int64_t GROUP = 3, FEW_ROWS = PANEL_ROWS / 2;
    const int64_t pairs = inputs / 2, panels = outputs / PANEL_OUTPUTS, panel_size = inputs * PANEL_OUTPUTS;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)  // by k, because threads that write to the same cache line wait for each other
        for (int64_t k = 0; k < pairs; ++k)
            for (int64_t row = 0; row < rows; ++row)
                std::memcpy(pairs_of_x + (row / PANEL_ROWS * pairs + k) * PANEL_ROWS + row % PANEL_ROWS,
                            x + row * inputs + 2 * k, sizeof(uint32_t));
        if (rows <= PANEL_ROWS) {
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; ++panel) {
                const bfloat16 *w = weight + panel * panel_size;
                multiply_rows<PANEL_ROWS, 1>(rows, w, pairs_of_x, pairs, out + panel * PANEL_OUTPUTS, outputs,
                                             w + PREFETCH_DISTANCE);
            }
        } else {
#pragma omp for schedule(static)
            for (int64_t first = 0; first < panels; first += GROUP) {
                const bfloat16 *w = weight + first * panel_size;
                for (int64_t row = 0; row < rows; row += FEW_ROWS) {
                    const int64_t count = std::min(FEW_ROWS, rows - row);
                    const int64_t next = first + GROUP + row / FEW_ROWS;  // prefetches one of the next three panels
                    const bfloat16 *ahead = next < std::min(first + 2 * GROUP, panels) ? weight + next * panel_size : w;
                    const uint32_t *x_rows = pairs_of_x + row / PANEL_ROWS * pairs * PANEL_ROWS + row % PANEL_ROWS;
                    bfloat16 *o = out + row * outputs + first * PANEL_OUTPUTS;
                    if (panels - first >= 3)
                        multiply_rows<FEW_ROWS, 3>(count, w, x_rows, pairs, o, outputs, ahead);
                    else if (panels - first == 2)
                        multiply_rows<FEW_ROWS, 2>(count, w, x_rows, pairs, o, outputs, ahead);
                    else
                        multiply_rows<FEW_ROWS, 1>(count, w, x_rows, pairs, o, outputs, ahead);
                }
            }
        }
    }
}

#endif  // __AVX512BF16__

// ---- Linear layers with weights in 8 or 4 bits. quantized_panels.py has the layout of the panels.
//
// Weights become floats in registers; activations are not rounded, and sums are float. Each output of each row is one
// chain of operations in the order of the inputs, so a row's result does not depend on the number of rows. A compiler
// must not reorder the chains.
#pragma GCC push_options
#pragma GCC optimize("no-associative-math")

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_TILE_ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, MAX_TILE_ROWS = 6;
#else
constexpr int LANES = 4, MAX_TILE_ROWS = 6;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

constexpr int64_t QUANTIZED_OUTPUTS = 16;  // of a panel; quantized_panels.py has the same constant
constexpr int VECTORS = QUANTIZED_OUTPUTS / LANES;  // of a panel's outputs
constexpr int WIDEST_TILE = 8;  // vectors of outputs; eight chains of one row hide the latency of the additions
constexpr int64_t UNIT = WIDEST_TILE / VECTORS;  // panels that one tile of one row spans
constexpr int64_t GROUP = 32;  // inputs are packed in groups; quantized_panels.py has the same constant
constexpr int64_t QUANTIZED_PREFETCH = 2048;  // bytes
constexpr float SMALLEST_WEIGHT = 1e-30f;  // a group without larger ones is 0; quantize.py has the same constant

template <typename Vector>
INLINE Vector loaded(const void *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The LANES bytes at `from` as floats. GCC 12 would convert them one by one.
INLINE Floats floats_of_bytes(const char *from) {
#if defined(__AVX512F__)
    const Words words = (Words)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#elif defined(__AVX2__)
    const Words words = (Words)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
#else
    Words words;
    for (int lane = 0; lane < LANES; ++lane) words[lane] = static_cast<int8_t>(from[lane]);
#endif
    return __builtin_convertvector(words, Floats);
}

// Vectors of outputs in a tile of R rows, so that the sums fill the registers.
constexpr int tile_width(int R) { return R == 1 ? WIDEST_TILE : R <= 3 ? 4 : 2; }

// What a tile of N vectors of outputs reads of the panels: vector n is of panel n / VECTORS.
struct TileOfPanels {
    const char *first;  // panel
    int64_t panel_bytes;
    int64_t first_output;  // of the first panel

    const char *part(int n, int64_t offset, int64_t bytes_of_output) const {
        return first + n / VECTORS * panel_bytes + offset + (first_output + n % VECTORS * LANES) * bytes_of_output;
    }

    // Few rows read the weights as fast as the memory allows. With more, the processor prefetches enough by itself.
    template <int R, int N>
    void prefetch(int64_t offset) const {
        if constexpr (R <= 2) {
            const int64_t ahead = offset + QUANTIZED_PREFETCH;
            const int64_t skipped = ahead < panel_bytes ? 0 : (N / VECTORS - 1) * panel_bytes;  // to the next tile
#pragma GCC unroll 8
            for (int n = 0; n < N; n += VECTORS) __builtin_prefetch(part(n, ahead + skipped, 0));
        }
    }
};

// sum[r][n] += weight_of(n) * x[r]. The smaller of both sides waits in registers for the other one.
template <int R, int N, typename WeightOf>
INLINE void add_products(Floats (&sum)[R][N], const float *x, WeightOf weight_of) {
    if constexpr (R < N) {
        Floats of_rows[R];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) of_rows[r] = Floats{} + x[r];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const Floats weights = weight_of(n);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sum[r][n] += weights * of_rows[r];
        }
    } else {
        Floats weights[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) weights[n] = weight_of(n);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const Floats of_row = Floats{} + x[r];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[r][n] += weights[n] * of_row;
        }
    }
}

// Weights of 8 bits: [inputs][16] bytes.
struct Bytes {
    // sum[r][n] += the weights at `offset` of `inputs` inputs, a multiple of four, times x [inputs][R].
    template <int R, int N>
    INLINE static void add(Floats (&sum)[R][N], const TileOfPanels &tile, int64_t offset, int64_t inputs, const float *x) {
        constexpr int64_t OF_CACHE_LINE = CACHE_LINE / QUANTIZED_OUTPUTS;
        for (int64_t k = 0; k < inputs; k += OF_CACHE_LINE, offset += CACHE_LINE) {
            tile.prefetch<R, N>(offset);
#pragma GCC unroll 4
            for (int64_t i = 0; i < OF_CACHE_LINE; ++i, x += R)
                add_products(sum, x, [&](int n) INLINE_LAMBDA {
                    return floats_of_bytes(tile.part(n, offset + i * QUANTIZED_OUTPUTS, 1));
                });
        }
    }
};

// Weights of 4 bits: [inputs / 8][16] words of 8 weights.
//
// A weight is used in its place in the word, without a shift: the one at bit 4 j is 16^j times too large, and its input
// is packed 16^-j times as large. The highest one is a number from -8 to 7, the others are from 0 to 15.
struct Nibbles {
    static constexpr int64_t PER_WORD = 8, HIGHEST = PER_WORD - 1, WORDS = QUANTIZED_OUTPUTS * sizeof(int32_t);
    static constexpr float OF_PLACE[PER_WORD] = {0x1p0f,   0x1p-4f,  0x1p-8f,  0x1p-12f,
                                                 0x1p-16f, 0x1p-20f, 0x1p-24f, 0x1p-28f};

    template <int J, int R, int N>
    INLINE static void add_word(Floats (&sum)[R][N], const Words (&words)[N], const float *x) {
        if constexpr (J < PER_WORD) {
            add_products(sum, x + J * R, [&](int n) INLINE_LAMBDA {
                return __builtin_convertvector(words[n] & static_cast<int32_t>(0xFu << 4 * J), Floats);
            });
            add_word<J + 1>(sum, words, x);
        }
    }

    // As Bytes::add. Inputs are a multiple of eight, and x is packed for the places in the words.
    template <int R, int N>
    INLINE static void add(Floats (&sum)[R][N], const TileOfPanels &tile, int64_t offset, int64_t inputs, const float *x) {
        for (int64_t k = 0; k < inputs; k += PER_WORD, x += PER_WORD * R, offset += WORDS) {
            tile.prefetch<R, N>(offset);
            Words words[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) words[n] = loaded<Words>(tile.part(n, offset, sizeof(int32_t)));
            add_word<0>(sum, words, x);
        }
    }
};

// A panel is 16 scales in float, then [inputs][16] weights. All inputs of an output share its scale.
struct Int8 {
    static int64_t panel_bytes(int64_t inputs) { return QUANTIZED_OUTPUTS * (sizeof(float) + inputs); }

    // Floats of a packed row.
    static int64_t packed_size(int64_t inputs) { return inputs; }

    // Packs the group of inputs from number `first` on of `rows` rows of x, as [GROUP][rows]. Beyond `inputs` is 0.
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + first * rows;
        for (int64_t k = first; k < first + GROUP; ++k)
            for (int64_t r = 0; r < rows; ++r) *packed++ = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
    }

    template <int R, int N>
    __attribute__((noinline)) static void multiply(const TileOfPanels &tile, const float *x, int64_t inputs, Floats (&total)[R][N]) {
        Floats sum[R][N] = {};
        Bytes::add(sum, tile, QUANTIZED_OUTPUTS * sizeof(float), inputs, x);
        for (int n = 0; n < N; ++n) {
            const Floats scales = loaded<Floats>(tile.part(n, 0, sizeof(float)));
            for (int r = 0; r < R; ++r) total[r][n] = sum[r][n] * scales;
        }
    }
};

INLINE Floats loaded_scales(const float *from) { return loaded<Floats>(from); }

INLINE Floats loaded_scales(const bfloat16 *from) {
    return (Floats)(__builtin_convertvector(loaded<Halves>(from), Words) << 16);
}

INLINE Floats loaded_scales(const float16 *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else  // exact for all finite numbers
    const Words bits = __builtin_convertvector(loaded<Halves>(from), Words);
    const Floats magnitude = (Floats)((bits & 0x7FFF) << 13) * 0x1p112f;
    return (Floats)((Words)magnitude | (bits & 0x8000) << 16);
#endif
}

// A panel is, for each group of 32 inputs, 16 scales, then the weights. All but the highest of a word are stored with 8
// added, which the group's sum begins without.
template <typename Scale>
struct Int4 {
    static constexpr int64_t SCALES = QUANTIZED_OUTPUTS * sizeof(Scale);
    static constexpr int64_t GROUP_BYTES = SCALES + GROUP / Nibbles::PER_WORD * Nibbles::WORDS;

    static int64_t panel_bytes(int64_t inputs) { return inputs / GROUP * GROUP_BYTES; }
    static int64_t packed_size(int64_t inputs) { return inputs / GROUP * (1 + GROUP); }

    // Packs a group as Int8 does, behind what its sums begin with, [rows].
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + packed_size(first) * rows;
        for (int64_t r = 0; r < rows; ++r) {
            float of_raised = 0.0f;
            for (int64_t i = 0; i < GROUP; ++i) {
                const int64_t place = i % Nibbles::PER_WORD, k = first + i;
                const float value = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
                if (place != Nibbles::HIGHEST) of_raised += value;
                packed[(1 + i) * rows + r] = value * Nibbles::OF_PLACE[place];
            }
            packed[r] = -8.0f * of_raised;
        }
    }

    template <int R, int N>
    __attribute__((noinline)) static void multiply(const TileOfPanels &tile, const float *x, int64_t inputs, Floats (&total)[R][N]) {
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) total[r][n] = Floats{};
        for (int64_t offset = 0; offset < inputs / GROUP * GROUP_BYTES; offset += GROUP_BYTES) {
            Floats sum[R][N];
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) sum[r][n] = Floats{} + x[r];
            x += R;
            Nibbles::add(sum, tile, offset + SCALES, GROUP, x);
            x += GROUP * R;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                const char *const at = tile.part(n, offset, sizeof(Scale));
                const Floats scales = loaded_scales(reinterpret_cast<const Scale *>(at));
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) total[r][n] += sum[r][n] * scales;
            }
        }
    }
};

// A panel is, for each block of groups, 16 scales and, with minima, 16 minima in float16, then its groups. A group is 16
// steps and, with minima, 16 steps of them in bytes, then the weights. A weight is
// number * scale * step - minimum * step of the minimum. Numbers of 4 bits are from 0 to 15, and those that are the
// highest of their word are stored with 8 taken away.
template <typename Weights, int64_t INPUTS, bool HAS_MINIMA>
struct Blocked {
    static constexpr int64_t PARTS = HAS_MINIMA ? 2 : 1, SCALES = QUANTIZED_OUTPUTS * sizeof(float16);
    static constexpr int64_t HEAD = PARTS * SCALES, STEPS = PARTS * QUANTIZED_OUTPUTS;
    static constexpr bool HAS_WORDS = std::is_same_v<Weights, Nibbles>;
    static constexpr int64_t GROUP_BYTES = STEPS + INPUTS * QUANTIZED_OUTPUTS / (HAS_WORDS ? 2 : 1);
    int64_t groups;  // of a block

    int64_t block_bytes() const { return HEAD + groups * GROUP_BYTES; }
    int64_t panel_bytes(int64_t inputs) const { return inputs / (INPUTS * groups) * block_bytes(); }
    static int64_t packed_size(int64_t inputs) { return inputs / INPUTS * (2 + INPUTS); }

    // Packs GROUP inputs as Int4 does. Before each group of INPUTS is what its sums begin with, then the sum of its x.
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + packed_size(first) * rows;
        for (int64_t begin = first; begin < first + GROUP; begin += INPUTS, packed += (2 + INPUTS) * rows)
            for (int64_t r = 0; r < rows; ++r) {
                float of_lowered = 0.0f, of_all = 0.0f;
                for (int64_t i = 0; i < INPUTS; ++i) {
                    const int64_t place = i % Nibbles::PER_WORD, k = begin + i;
                    const float value = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
                    if (HAS_WORDS && place == Nibbles::HIGHEST) of_lowered += value;
                    of_all += value;
                    packed[(2 + i) * rows + r] = HAS_WORDS ? value * Nibbles::OF_PLACE[place] : value;
                }
                packed[r] = 8.0f * of_lowered;
                packed[rows + r] = of_all;
            }
    }

    // The scales, or with PART 1 the minima, of the group at `offset` in the block at `block`.
    template <int PART>
    INLINE static Floats scales_of(const TileOfPanels &tile, int n, int64_t block, int64_t offset) {
        const char *const of_block = tile.part(n, block + PART * SCALES, sizeof(float16));
        const char *const steps = tile.part(n, offset + PART * QUANTIZED_OUTPUTS, 1);
        return loaded_scales(reinterpret_cast<const float16 *>(of_block)) * floats_of_bytes(steps);
    }

    template <int R, int N>
    __attribute__((noinline)) void multiply(const TileOfPanels &tile, const float *x, int64_t inputs, Floats (&total)[R][N]) const {
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) total[r][n] = Floats{};
        const int64_t size = panel_bytes(inputs);
        for (int64_t block = 0; block < size; block += block_bytes())
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t offset = block + HEAD + group * GROUP_BYTES;
                Floats sum[R][N];
                for (int r = 0; r < R; ++r)
                    for (int n = 0; n < N; ++n) sum[r][n] = Floats{} + x[r];
                const float *const of_all = x + R;
                x += 2 * R;
                Weights::add(sum, tile, offset + STEPS, INPUTS, x);
                x += INPUTS * R;
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const Floats scales = scales_of<0>(tile, n, block, offset);
#pragma GCC unroll 12
                    for (int r = 0; r < R; ++r) total[r][n] += sum[r][n] * scales;
                    if constexpr (HAS_MINIMA) {
                        const Floats minima = scales_of<1>(tile, n, block, offset);
#pragma GCC unroll 12
                        for (int r = 0; r < R; ++r) total[r][n] -= minima * (Floats{} + of_all[r]);
                    }
                }
            }
    }
};

// Rows that are multiplied in one pass over a panel, and where their outputs are.
template <typename T>
struct RowBlock {
    const float *packed;
    T *out;
    int64_t out_stride;
    int64_t rows;
};

template <int R, int N, typename Format, typename T>
inline void multiply_tile(const Format &format, const TileOfPanels &tile, const RowBlock<T> &block, int64_t inputs, T *out) {
    Floats total[R][N];
    format.multiply(tile, block.packed, inputs, total);
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) {
            float lanes[LANES];
            std::memcpy(lanes, &total[r][n], sizeof lanes);
            for (int lane = 0; lane < LANES; ++lane)
                out[r * block.out_stride + n * LANES + lane] = rounded<T>(lanes[lane]);
        }
}

// Multiplies the R rows of `block` by the `panels` panels from number `first` on.
template <int R, typename Format, typename T>
void multiply_panels(const Format &format, const char *weight, int64_t first, int64_t panels, const RowBlock<T> &block,
                     int64_t inputs) {
    if constexpr (R > 0) {
        if (block.rows != R) return multiply_panels<R - 1>(format, weight, first, panels, block, inputs);
        constexpr int WIDTH = tile_width(R), REST = VECTORS < 2 ? 1 : 2;
        const int64_t panel_bytes = format.panel_bytes(inputs);
        const auto tile = [&](int64_t vector) {
            const char *const panel = weight + (first + vector / VECTORS) * panel_bytes;
            return TileOfPanels{panel, panel_bytes, vector % VECTORS * LANES};
        };
        T *const out = block.out + first * QUANTIZED_OUTPUTS;
        int64_t at = 0;
        for (; at + WIDTH <= panels * VECTORS; at += WIDTH)
            multiply_tile<R, WIDTH>(format, tile(at), block, inputs, out + at * LANES);
        for (; at < panels * VECTORS; at += REST)
            multiply_tile<R, REST>(format, tile(at), block, inputs, out + at * LANES);
    }
}

// out [rows, panels * 16] = x [rows, inputs] * weight^T. `packed` is scratch for Format::packed_size floats a row.
template <typename Format, typename T>
void multiply_quantized(const Format &format, const char *weight, const T *x, float *packed, T *out, int64_t rows,
                        int64_t inputs, int64_t panels, int threads) {
    const int64_t groups = (inputs + GROUP - 1) / GROUP, packed_size = Format::packed_size(groups * GROUP);
    if (rows == 0) return;  // a step that chooses no tokens
    const int64_t blocks = (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS, of_block = (rows + blocks - 1) / blocks;
    const auto rows_of = [&](int64_t block) { return std::min(of_block, rows - block * of_block); };
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) collapse(2)
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t group = 0; group < groups; ++group)
                Format::pack(x + block * of_block * inputs, rows_of(block), inputs, group * GROUP,
                             packed + block * of_block * packed_size);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += UNIT)
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t row = block * of_block, stride = panels * QUANTIZED_OUTPUTS;
                const RowBlock<T> of_rows{packed + row * packed_size, out + row * stride, stride, rows_of(block)};
                multiply_panels<MAX_TILE_ROWS>(format, weight, first, std::min(UNIT, panels - first), of_rows,
                                               groups * GROUP);
            }
    }
}

#pragma GCC pop_options

inline int32_t nearest(float x, float least, float most) {  // between the bounds
    x = x < least ? least : x;
    x = x > most ? most : x;
    return static_cast<int32_t>(x - least + 0.5f) + static_cast<int32_t>(least);
}

// Rounds the weights of one output to 8 bits, with the scale that gives the largest 127.
template <typename T>
void quantize_8_bits(const T *weight, int8_t *values, float *scale, int64_t inputs) {
    float largest = 0.0f;
    for (int64_t i = 0; i < inputs; ++i) largest = std::max(largest, std::fabs(to_float(weight[i])));
    const bool is_zero = largest < SMALLEST_WEIGHT;
    *scale = is_zero ? 0.0f : largest / 127.0f;
    const float inverse = is_zero ? 0.0f : 127.0f / largest;
    for (int64_t i = 0; i < inputs; ++i)
        values[i] = static_cast<int8_t>(nearest(to_float(weight[i]) * inverse, -127.0f, 127.0f));
}

// Rounds a group of weights to 4 bits, and returns the scale. Of the scales that give the largest weight one of
// EXTREMES, it takes the one with the least sum of squared errors, each moved to the optimum of its rounded weights.
inline bfloat16 quantize_4_bits(const float (&weights)[GROUP], int8_t (&values)[GROUP]) {
    constexpr float EXTREMES[] = {-8.4f, -8.0f, -7.6f, -7.2f, -6.7f, 7.25f, 6.75f, 6.25f};
    float least = 0.0f, most = 0.0f;
    for (const float w : weights) least = std::min(least, w), most = std::max(most, w);
    const float extreme = most > -least ? most : least;
    bfloat16 scale{0};
    float inverse = 0.0f;
    if (std::fabs(extreme) >= SMALLEST_WEIGHT) {
        float best_gain = -INFINITY;
        for (const float candidate : EXTREMES) {
            float products = 0.0f, squares = 0.0f;
            for (int64_t i = 0; i < GROUP; ++i) {
                const float n = static_cast<float>(nearest(weights[i] * (candidate / extreme), -8.0f, 7.0f));
                products += weights[i] * n;
                squares += n * n;
            }
            const bfloat16 optimum = rounded<bfloat16>(products / squares);
            const float s = to_float(optimum), gain = s * (2.0f * products - s * squares);  // of squared error
            if (gain > best_gain) best_gain = gain, scale = optimum, inverse = 1.0f / s;
        }
    }
    for (int64_t i = 0; i < GROUP; ++i)
        values[i] = static_cast<int8_t>(nearest(weights[i] * inverse, -8.0f, 7.0f));
    return scale;
}

template <typename T>
void quantize_int8(const T *weight, int8_t *values, float *scales, int64_t outputs, int64_t inputs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; ++output)
        quantize_8_bits(weight + output * inputs, values + output * inputs, scales + output, inputs);
}

template <typename T>
void quantize_int4(const T *weight, int8_t *values, bfloat16 *scales, int64_t outputs, int64_t inputs, int threads) {
    const int64_t groups = (inputs + GROUP - 1) / GROUP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; ++output)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t first = output * inputs + group * GROUP, count = std::min(GROUP, inputs - group * GROUP);
            float of_group[GROUP] = {};
            int8_t quantized[GROUP];
            for (int64_t i = 0; i < count; ++i) of_group[i] = to_float(weight[first + i]);
            scales[output * groups + group] = quantize_4_bits(of_group, quantized);
            std::memcpy(values + first, quantized, count);
        }
}

}  // namespace

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
                                              void *cache, int64_t head_stride, int64_t tokens, int64_t heads,        \
                                              int64_t kv_heads, int64_t dim, int64_t rotary, int threads) {           \
        rotate_and_store(static_cast<T *>(qkv), static_cast<const T *>(cosine), static_cast<const T *>(sine), slots,  \
                         static_cast<T *>(cache), head_stride, tokens, heads, kv_heads, dim, rotary, threads);        \
    }                                                                                                                 \
    extern "C" void attend_##SUFFIX(const void *rows, int64_t num_rows, const void *query, int64_t query_stride,      \
                                    const void *cache, int64_t head_stride, void *output, int64_t heads,              \
                                    int64_t kv_heads, int64_t dim, float scale, float *scratch, int64_t longest,      \
                                    int threads) {                                                                    \
        attend(static_cast<const AttentionRow *>(rows), num_rows, static_cast<const T *>(query), query_stride,        \
               Cache<T>{static_cast<const T *>(cache), head_stride, kv_heads, dim}, static_cast<T *>(output), heads,  \
               scale, scratch, longest, threads);                                                                     \
    }

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

EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)

#ifdef __AVX512BF16__
extern "C" void multiply_bfloat16(const void *weight, const void *x, void *pairs_of_x, void *out, int64_t rows,
                                  int64_t inputs, int64_t outputs, int threads) {
    multiply(static_cast<const bfloat16 *>(weight), static_cast<const bfloat16 *>(x),
             static_cast<uint32_t *>(pairs_of_x), static_cast<bfloat16 *>(out), rows, inputs, outputs, threads);
}
#endif
