// Instruction sets: every kernel is compiled once per set, each in its own namespace, and one is chosen at run time.
//
// PE_CPU_KERNEL(name, Args) in an op's header declares the twins and the dispatching function pe::cpu::name; a
// missing twin is a link error. PE_CPU_KERNEL_UP_TO_AVX512 is for those that multiply no pairs of bf16: a set with such
// products runs their AVX-512 twin, and setup.py compiles them once less. Code shared by kernels (simd.h, gemm_tile.h)
// lives in pe::cpu::PE_ISA as well: an inline function outside it would be merged by the linker across instruction
// sets, and an AVX-512 body could run on a machine without it.
#pragma once

namespace pe::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };
inline constexpr int kNumIsas = 4;

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);  // by this CPU and this build
Isa best_isa();
Isa active_isa();
void set_active_isa(Isa isa);  // caller has checked isa_supported

}  // namespace pe::cpu

#if defined(__x86_64__)
#define PE_CPU_TWINS(name, Args, of_bf16)                      \
    namespace baseline {                                       \
    void name(const Args& args);                               \
    }                                                          \
    namespace avx2 {                                           \
    void name(const Args& args);                               \
    }                                                          \
    namespace avx512 {                                         \
    void name(const Args& args);                               \
    }                                                          \
    namespace avx512_bf16 {                                    \
    void name(const Args& args);                               \
    }                                                          \
    inline void name(const Args& args) {                       \
        switch (active_isa()) {                                \
            case Isa::kAvx512Bf16: return of_bf16::name(args); \
            case Isa::kAvx512: return avx512::name(args);      \
            case Isa::kAvx2: return avx2::name(args);          \
            case Isa::kBaseline: return baseline::name(args);  \
        }                                                      \
    }
#define PE_CPU_KERNEL(name, Args) PE_CPU_TWINS(name, Args, avx512_bf16)
#define PE_CPU_KERNEL_UP_TO_AVX512(name, Args) PE_CPU_TWINS(name, Args, avx512)
#else
#define PE_CPU_KERNEL(name, Args) \
    namespace baseline {          \
    void name(const Args& args);  \
    }                             \
    inline void name(const Args& args) { return baseline::name(args); }
#define PE_CPU_KERNEL_UP_TO_AVX512 PE_CPU_KERNEL
#endif
