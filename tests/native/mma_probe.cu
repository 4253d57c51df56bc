// The functions of cuda/common/mma.cuh, reachable from the tests.
#include "mma_probe.h"

#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/shared_tiles.cuh"

namespace pe::cuda {
namespace {

constexpr int kMostDepth = 64;

__global__ void mma_probe_kernel(MmaProbeArgs p) {
    alignas(16) __shared__ uint16_t a[16 * kMostDepth];
    alignas(16) __shared__ uint16_t b[16 * kMostDepth];  // of b's rows the second half stays empty
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane * 8; i < 16 * p.K; i += 32 * 8) copy_async_16(a + i, p.a + i, true);
    for (int i = lane * 8; i < 16 * p.K; i += 32 * 8) copy_async_16(b + i, p.b + i, i < 8 * p.K);
    commit_copies();
    if (!p.forget) wait_for_copies<0>();
    __syncthreads();
    FragmentC c;
    for (int i = 0; i < 4; ++i) c.c[i] = p.c[mma_row(lane, i) * 8 + mma_column(lane, i)];
    // Of four 8 x 8 matrices the second is below the first, the third beside it. Transposed, the second is beside the first.
    const int along = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
    for (int k = 0; k < p.K; k += kMmaDepth) {
        FragmentA fa;
        FragmentB fb;
        uint32_t pair[4];
        if (p.transposed) {
            load_matrices_transposed(fa.a, a + (k + third + along) * 16 + second);
            load_matrices_transposed(pair, b + (k + second + along) * 8);
        } else {
            load_matrices(fa.a, a + (second + along) * p.K + k + third);
            load_matrices(pair, b + along * p.K + k + second);
        }
        fb.b[0] = pair[0];
        fb.b[1] = pair[1];
        mma_bf16(c, fa, fb);
    }
    wait_for_copies<0>();
    for (int i = 0; i < 4; ++i) p.c[mma_row(lane, i) * 8 + mma_column(lane, i)] = c.c[i];
}

}  // namespace

void shared_read(SharedRead read, int step, int (&words)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
        const int pair = step % 4 * 4 + lane % 4, n = step / 4 * 8 + lane / 4;
        switch (read) {
            case SharedRead::kRowsOfX:
                words[lane] =
                    RowsOfX<32>::chunk(lane % 16 + step / 2 * 16, step % 2 * 2 + lane / 16);
                break;
            case SharedRead::kRowsOfQ:  // in words
                words[lane] = RowsOfQ<16, 64>::place(lane % 16, step * 2 + lane / 16) / 2;
                break;
            case SharedRead::kWordRows: {
                const WordRows<32, 64> rows{};
                const WordsOfLane of_lane = WordsOfLane::of(rows, lane);
                words[lane] = of_lane.place[step / 4] + step % 4 * 8 * 64;
                break;
            }
            case SharedRead::kPanelBf16:
                words[lane] = PanelOfW<bf16>::chunk(pair, n / 4) + n % 4;
                break;
            case SharedRead::kPanelInt8:
                words[lane] = PanelOfW<int8_t>::chunk(pair, n / 8) + n % 8 / 2;
                break;
        }
    }
}

void mma_probe(const MmaProbeArgs& args) { launch(mma_probe_kernel, dim3(1), 32, nullptr, args); }

}  // namespace pe::cuda
