// What attention_backward's kernels share: blocks of rows of packed prompt trees, and which of them see each other.
#pragma once

#include "common/attention_pages.cuh"
#include "pyengine/ops/attention_backward.h"

namespace pe::cuda {

// Of f32: attention_backward_plain.cu. `delta` (T, H) is sum_d dout * out.
int attention_plain_backward(const AttentionBackwardArgs& a, const float* delta, void* stream);

namespace {

// Up to a tile's rows of one sequence.
struct TreeRows {
    int sequence = 0;
    int row = 0;       // the first one in the call
    int count = 0;     // 0: none
    int position = 0;  // of the first one in its text
};

// A row of sequence s sees the keys of its prompt and its own sequence's.
struct Trees {
    const int32_t* cu;
    const int32_t* prefix;
    int sequences;
    int window;

    __device__ explicit Trees(const AttentionBackwardArgs& a)
        : cu(ptr<int32_t>(a.cu_seqlens)),
          prefix(ptr<int32_t>(a.prefix_rows)),
          sequences(static_cast<int>(a.prefix_rows.size)),
          window(static_cast<int>(a.window)) {}

    __device__ int rows(int s) const { return cu[s + 1] - cu[s]; }

    // Rows [first, first + most) of a sequence, as far as it has them.
    __device__ TreeRows part(int s, int first, int most) const {
        const int left = rows(s) - first;
        return {s, cu[s] + first, left < 0 ? 0 : (left < most ? left : most), prefix[s] + first};
    }

    // Tile t of all sequences: sequence s starts at tile (its first row) / (rows of a tile) + s, which is room enough, and at most
    // one tile too many.
    __device__ TreeRows tile(int t, int of_tile) const {
        const auto start = [&](int64_t s) { return int64_t{cu[s] / of_tile} + s; };
        const int s = static_cast<int>(last_not_after(sequences, t, start));
        return part(s, (t - static_cast<int>(start(s))) * of_tile, of_tile);
    }

    __device__ int prompt_of(int s) const {
        while (prefix[s] != 0) --s;
        return s;
    }

    // Past the last sequence that sees keys of sequence s.
    __device__ int end_of_readers(int s) const {
        int end = s + 1;
        if (prefix[s] == 0) {
            while (end < sequences && prefix[end] != 0) ++end;
        }
        return end;
    }

    __device__ bool sees(int row_position, int key_position) const {
        return pe::cuda::sees(window, row_position, key_position);
    }

    // Calls f for parts of `step` rows, in order, that may see one of `keys`: from a multiple of `step` of each sequence on.
    template <typename F>
    __device__ void for_each_reader(const TreeRows& keys, int step, const F& f) const {
        const int last_key = keys.position + keys.count - 1;
        const int end = end_of_readers(keys.sequence);
        for (int s = keys.sequence; s < end; ++s) {
            const int own = keys.row - cu[s];  // of the keys in their sequence
            const int n = rows(s);
            for (int i = s == keys.sequence ? own / step * step : 0; i < n; i += step) {
                if (window > 0 && prefix[s] + i - last_key >= window) break;
                f(part(s, i, step));
            }
        }
    }

    // Calls f for parts of `step` keys, in order, that one of `rows` may see.
    template <typename F>
    __device__ void for_each_seen(const TreeRows& seeing, int step, const F& f) const {
        const int s = seeing.sequence, prompt = prompt_of(s);
        const int last = seeing.row + seeing.count - 1 - cu[s];  // the last key of its own
        for (int of = prompt;; of = s) {
            const int n = of == s ? last + 1 : rows(of);
            for (int i = 0; i < n; i += step) {
                const TreeRows keys = part(of, i, step);
                const int last_key = keys.position + keys.count - 1;
                if (window == 0 || seeing.position - last_key < window) f(keys);
            }
            if (of == s) break;
        }
    }
};

}  // namespace
}  // namespace pe::cuda
