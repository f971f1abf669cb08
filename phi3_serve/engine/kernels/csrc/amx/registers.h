// The state of a thread's registers while it works with AMX: the configuration of the tiles, and how vectors treat
// denormal numbers. It needs AMX.
#pragma once

#include <cstdint>

#include "../dtypes.h"
#include "../platform.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t TILE_ROWS = 16;  // the most that a tile has; PADDING_ROWS of quantized_panels.py is the same

// The numbers of the tiles' registers must be literals: 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights.
struct alignas(CACHE_LINE) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// GCC 12's intrinsics for tiles do not say what memory they read, so it may move or drop the stores before them.
INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// The tiles' registers of this thread, while this object lives. The configuration of before comes back, because ATen's
// brgemm remembers which one a thread has loaded.
class ConfiguredTiles {
  public:
    ConfiguredTiles(int64_t rows, int64_t inputs) {
        _tile_storeconfig(&before_);
        TileConfig config;
        for (int tile = 0; tile < 8; ++tile) {
            const bool has_activations = tile == 4 || tile == 5;
            config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : inputs / 2);
            config.row_bytes[tile] = static_cast<uint16_t>(has_activations ? inputs * sizeof(bfloat16) : CACHE_LINE);
        }
        finish_stores();
        _tile_loadconfig(&config);
    }

    ~ConfiguredTiles() {
        if (before_.palette == 0) {
            _tile_release();
        } else {
            finish_stores();
            _tile_loadconfig(&before_);
        }
    }

  private:
    TileConfig before_;
};

// While this object lives, numbers below the normal ones are 0 in vectors too, as AMX has it.
class DenormalsAreZero {
  public:
    DenormalsAreZero() { _mm_setcsr(before_ | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO); }
    ~DenormalsAreZero() { _mm_setcsr(before_); }

  private:
    static constexpr unsigned FLUSH_TO_ZERO = 1 << 15, DENORMALS_ARE_ZERO = 1 << 6;
    const unsigned before_ = _mm_getcsr();
};

struct alignas(CACHE_LINE) TileSums {
    float of[TILE_ROWS][LANES];
};

#pragma GCC pop_options

}  // namespace
