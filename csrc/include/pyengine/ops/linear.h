// linear: y[t,n] = f(sum_k x[t,k] * weight[n,k] + bias[n]), the weight packed once (packed.h)
// shapes       x (T, K), row stride free, last dim contiguous; weight (N, K) packed; bias (N,) or null; y up to three
//              matrices whose columns follow each other and are N in all (N / 2 for kSiluGate)
// dtypes       x f32 with an f32 weight, bf16 with a bf16 or i8 weight; bias f32; y each f32 or bf16 (f32 for kAdd);
//              kept, dy, dx f32 or bf16; dweight, dbias f32
// epilogue     kStore y = v; kAdd y += v; kSiluGate y = silu(gate) * up of a gated pair; kGelu y = gelu_tanh(v);
//              kept: what an activation was made of, for its backward: gate and up, or v
// aliasing     none
// gradient     dx = linear_forward(dy, the same weight packed by columns); dweight = dy^T x and dbias are accumulated (+=),
//              tokens in order, so that a later call continues the chain. In bf16, dy is rounded (not for dbias) and tokens go in pairs:
//              each group of rows starts a new pair, an odd one ends with a zero, so the split into calls changes nothing
// determinism  cpu: an output has one f32 accumulator that walks K in order, whatever T, tile, threads; bf16 and i8 take pairs, the
//              odd element first, as dpbf16ps does, and flush denormals: the same bits on every instruction set with FMA.
//              cuda: f32 has the CPU's bits; bf16 and i8 walk K in steps of 16, each one mma, whatever T and tile; in the
//              backward each group of rows starts a new step
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
    MatrixView kept[2] = {};  // columns as of a single y; null: not wanted
    PackedMatrix then = {};  // likely multiplied next: fetched from memory in time; null: not known
};

// Writes rows of `weight` (f32 or bf16) to outputs first, first + 1, ... of `packed`, whose memory starts as zeros. In a gated
// pair the gate has first = 0 and up first = 16.
struct LinearPackArgs {
    MatrixView weight;
    PackedMatrix packed;
    int64_t first = 0;
    bool gated = false;
};

// The transpose, packed: row r of `weight` (f32 or bf16) becomes element first + r along K of every output, one output for a
// column. Not for i8. The memory starts as zeros.
struct LinearPackColumnsArgs {
    MatrixView weight;
    PackedMatrix packed;
    int64_t first = 0;
};

// The same from a matrix that is packed already, f32 or bf16: `to` (K, N) becomes the transpose of `from` (N, K). A gated `from` has
// gate over up in `to`. All of `to` is written.
struct LinearTransposeArgs {
    PackedMatrix from;
    PackedMatrix to;
    bool gated = false;
};

struct LinearBackwardArgs {
    MatrixView dy;       // (T, N) f32 or bf16
    MatrixView x;        // (T, K)
    VectorView groups;   // (G + 1,) i64, from 0 to T: rows groups[g] to groups[g + 1] are group g
    MatrixView dweight;  // (N, K) f32; null: not wanted
    VectorView dbias;    // (N,) f32; null: not wanted
    void* workspace = nullptr;
};

// dx of kSiluGate (T, 2 N): gate's, then up's; of kGelu (T, N). y (T, N) is the activation again: the forward's bits where `kept`
// is f32, since the forward rounds what it keeps, not what it activates.
struct LinearActivationBackwardArgs {
    MatrixView dy;
    MatrixView kept[2];  // of the forward; the second one null for kGelu
    MatrixView dx;
    MatrixView y = {};  // of kept's dtype; null: not wanted
};

namespace cpu {
int64_t linear_backward_workspace_bytes(int64_t rows, int64_t N, int64_t K, int64_t groups,
                                        DType x);
PE_CPU_KERNEL(linear_pack, LinearPackArgs)
PE_CPU_KERNEL(linear_pack_columns, LinearPackColumnsArgs)
PE_CPU_KERNEL(linear_transpose, LinearTransposeArgs)
PE_CPU_KERNEL(linear_forward, LinearForwardArgs)
PE_CPU_KERNEL(linear_backward, LinearBackwardArgs)
PE_CPU_KERNEL(linear_activation_backward, LinearActivationBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int64_t linear_backward_workspace_bytes(int64_t rows, int64_t N, int64_t K, int64_t groups,
                                        DType x);
int linear_pack(const LinearPackArgs& args, void* stream);
int linear_pack_columns(const LinearPackColumnsArgs& args, void* stream);
int linear_transpose(const LinearTransposeArgs& args, void* stream);
int linear_forward(const LinearForwardArgs& args, void* stream);
int linear_backward(const LinearBackwardArgs& args, void* stream);
int linear_activation_backward(const LinearActivationBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
