// rope: turns pair (i, i + head_dim/2) of every head by the angle of its row's position p = positions[t]:
//         y[t,h,i]              = x[t,h,i] * cos[p,i] - x[t,h,i+head_dim/2] * sin[p,i]
//         y[t,h,i+head_dim/2]   = x[t,h,i+head_dim/2] * cos[p,i] + x[t,h,i] * sin[p,i]
// shapes       x, y (T, heads * head_dim), cos, sin (P, head_dim/2), row stride free, last dim contiguous; positions (T,)
//              in [0, P); head_dim even
// dtypes       x, y each f32 or bf16; cos, sin f32; positions i64; computes in f32: each product and the sum are
//              rounded, none is fused
// aliasing     y may be x where the dtypes agree; no other overlap
// gradient     of x: the same op with `inverse`, which turns back (sin negated)
// determinism  cpu: bitwise for any thread count, batch and instruction set; cuda: the CPU's bits, and a row whose
//              position is outside [0, P) is NaN (the host cannot look without waiting)
// source       arXiv:2104.09864, in the pairing of halves
// proof        tests/reference/rope.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct RopeArgs {
    MatrixView x;
    int64_t head_dim = 0;
    MatrixView cos;
    MatrixView sin;
    VectorView positions;
    MatrixView y;
    bool inverse = false;
};

namespace {  // internal linkage: see isa.h

// The rotation, of one pair or of a vector of pairs.
template <typename V>
PE_HOST_DEVICE inline V rope_left(const V& left, const V& right, const V& cos, const V& sin) {
    return left * cos - right * sin;
}

template <typename V>
PE_HOST_DEVICE inline V rope_right(const V& left, const V& right, const V& cos, const V& sin) {
    return right * cos + left * sin;
}

}  // namespace

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(rope, RopeArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int rope(const RopeArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
