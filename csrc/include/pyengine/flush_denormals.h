// Denormal numbers as zeros, for a scope: dpbf16ps always takes them so, and its twins must be told.
// Compiled once per instruction set.
#pragma once

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
    FlushDenormals(const FlushDenormals&) = delete;

  private:
    unsigned before_;
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
};

}  // namespace
}  // namespace pe::cpu::PE_ISA
