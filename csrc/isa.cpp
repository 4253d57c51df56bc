#include "pyengine/isa.h"

#include <atomic>

namespace pe::cpu {
namespace {

std::atomic<int>& active() {
    static std::atomic<int> isa{static_cast<int>(best_isa())};
    return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::kBaseline: return "baseline";
        case Isa::kAvx2: return "avx2";
        case Isa::kAvx512: return "avx512";
        case Isa::kAvx512Bf16: return "avx512_bf16";
    }
    return "unknown";
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    switch (isa) {
        case Isa::kBaseline: return true;
        case Isa::kAvx2: return avx2;
        case Isa::kAvx512: return avx512;
        case Isa::kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
    }
    return false;
#else
    return isa == Isa::kBaseline;
#endif
}

Isa best_isa() {
    for (int i = kNumIsas - 1; i > 0; --i) {
        if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
    }
    return Isa::kBaseline;
}

Isa active_isa() { return static_cast<Isa>(active().load(std::memory_order_relaxed)); }

void set_active_isa(Isa isa) { active().store(static_cast<int>(isa), std::memory_order_relaxed); }

}  // namespace pe::cpu
