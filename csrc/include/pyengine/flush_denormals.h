// Denormal numbers as zeros, for a scope: dpbf16ps always takes them so, and its twins must be told.
// Compiled once per instruction set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pe::cpu::PE_ISA {
namespace {

class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
    ~FlushDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
    // FPCR.FZ. It looks at a result before it is rounded and x86 after: the least normal number, where a smaller result
    // rounds up to it, is the one that differs.
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(before_ | uint64_t{1} << 24) : "memory");
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(before_) : "memory"); }
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;

  private:
#if defined(__x86_64__)
    unsigned before_;
#elif defined(__aarch64__)
    uint64_t before_;
#endif
};

}  // namespace
}  // namespace pe::cpu::PE_ISA
