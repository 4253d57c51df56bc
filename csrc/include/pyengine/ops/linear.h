// linear: y[t,n] = f(sum_k x[t,k] * weight[n,k] + bias[n]), the weight packed once (packed.h)
// shapes       x (T, K), row stride free, last dim contiguous; weight (N, K) packed; bias (N,) or null; y up to three
//              matrices whose columns follow each other and are N in all (N / 2 for kSiluGate)
// dtypes       x f32 with an f32 weight, bf16 with a bf16 or i8 weight; bias f32; y each f32 or bf16 (f32 for kAdd)
// epilogue     kStore y = v; kAdd y += v; kSiluGate y = silu(gate) * up of a gated pair; kGelu y = gelu_tanh(v)
// aliasing     none
// gradient     none here: weights are packed for inference
// determinism  cpu: an output has one f32 accumulator that walks K in order, whatever T, tile, threads; bf16 and i8 take pairs, the
//              odd element first, as dpbf16ps does, and flush denormals: the same bits on every instruction set with FMA
// source       the register tile of Goto and van de Geijn, ACM TOMS 34(3), 2008; silu gate: arXiv:2002.05202
// proof        tests/reference/linear.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/packed.h"
#include "pyengine/view.h"

namespace pe {

enum class LinearEpilogue : int { kStore, kAdd, kSiluGate, kGelu };

constexpr int kMaxLinearOutputs = 3;

struct LinearForwardArgs {
    MatrixView x;
    PackedMatrix weight;
    VectorView bias;  // null: none
    LinearEpilogue epilogue = LinearEpilogue::kStore;
    MatrixView y[kMaxLinearOutputs];
    int outputs = 1;
};

// Writes rows of `weight` (f32 or bf16) to outputs first, first + 1, ... of `packed`, whose memory starts as zeros. In a gated
// pair the gate has first = 0 and up first = 16.
struct LinearPackArgs {
    MatrixView weight;
    PackedMatrix packed;
    int64_t first = 0;
    bool gated = false;
};

namespace cpu {
PE_CPU_KERNEL(linear_pack, LinearPackArgs)
PE_CPU_KERNEL(linear_forward, LinearForwardArgs)
}  // namespace cpu

}  // namespace pe
