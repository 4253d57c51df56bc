#include "pyengine/ops/lion.h"

#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kPerTask = 1 << 16;

// One register of elements: p and m are updated.
PE_INLINE void update(const LionScalars& s, vec grad, vec& p, vec& m) {
    const vec g = grad * s.grad_scale;
    const vec off = g - m;  // both means are m + (1-b) (g - m)
    const vec c = fma(broadcast(s.one_minus_beta1), off, m);
    const vec zero = {}, lr = broadcast(s.lr);
    p = p * s.decay - (c > zero ? lr : (c < zero ? -lr : zero));
    m = fma(broadcast(s.one_minus_beta2), off, m);
}

void step_range(const LionArgs& a, int64_t begin, int64_t end) {
    float *param = ptr<float>(a.param) + begin, *exp_avg = ptr<float>(a.exp_avg) + begin;
    const float* grad = ptr<float>(a.grad) + begin;
    for_each_16(end - begin, [&](int64_t i, int64_t n) {
        vec16 p = read(param + i, n), m = read(exp_avg + i, n);
        const vec16 g = read(grad + i, n);
        for (int j = 0; j < vec16::kParts; ++j) update(a.scalars, g.part[j], p.part[j], m.part[j]);
        write(param + i, p, n);
        write(exp_avg + i, m, n);
    });
}

}  // namespace

void lion_step(const LionArgs& a) {
    parallel_rows(a.param.size, kPerTask,
                  [&](int64_t begin, int64_t end) { step_range(a, begin, end); });
}

}  // namespace pe::cpu::PE_ISA
