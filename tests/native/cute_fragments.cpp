// The maps of cuda_on_host/fragments.h beside the layouts that CuTe has for the same instructions:
// someone else's reading of the manual, which runs on GPUs. Built by tests/test_cuda_fragments.py.
#include <cstdio>

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

#include "cuda_on_host/fragments.h"

namespace {

int differing = 0;

// `layout` maps (lane, element) to row + rows * column.
template <typename Layout, typename Map>
void compare(const char* name, const Layout& layout, int elements, int rows, const Map& map) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < elements; ++i) {
            const cuda_on_host::Place place = map(lane, i);
            const int theirs = static_cast<int>(layout(lane, i));
            const int ours = place.row + rows * place.column;
            if (ours == theirs) continue;
            printf("%s of lane %d, %d: %d here, %d in CuTe\n", name, lane, i, ours, theirs);
            ++differing;
        }
    }
}

}  // namespace

int main() {
    using namespace cuda_on_host;
    using Mma = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;
    compare("A", Mma::ALayout{}, 8, 16, place_in_a);
    // CuTe counts B by (column, row).
    compare("B", Mma::BLayout{}, 4, 8, [](int lane, int i) {
        const Place p = place_in_b(lane, i);
        return Place{p.column, p.row};
    });
    compare("C", Mma::CLayout{}, 4, 16, place_in_c);
    // Of ldmatrix CuTe says which of a matrix's 128-bit rows, and bits of it, a lane gets: 32 bits, at 32 (lane % 4) of row lane / 4.
    using Copy = cute::Copy_Traits<cute::SM75_U32x1_LDSM_N>;
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 2; ++i) {
            const Place p = place_in_8x8(lane, i);
            const int bit = static_cast<int>(Copy::DstLayout{}(lane, 16 * i));
            if (bit == 128 * p.row + 16 * p.column) continue;
            printf("ldmatrix of lane %d, %d: bit %d in CuTe\n", lane, i, bit);
            ++differing;
        }
    }
    printf("%d places differ\n", differing);
    return differing == 0 ? 0 : 1;
}
