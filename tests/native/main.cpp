// The kernels without Python: `native [--no-cuda] [--small] [--isa NAME] [--exp-stride N]`. Exit
// status 0 means every check passed.
#include <chrono>

#include "check.h"

namespace {

template <typename F>
void timed(const char* name, const F& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> s = std::chrono::steady_clock::now() - start;
    printf("  %s: %.1f s\n", name, s.count());
    fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    native::Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "--no-cuda") {
            options.cuda = false;
        } else if (arg == "--small") {
            options.small = true;
        } else if (arg == "--isa" && i + 1 < argc) {
            options.isa = argv[++i];
        } else if (arg == "--exp-stride" && i + 1 < argc) {
            options.exp_stride = static_cast<uint32_t>(std::stoul(argv[++i]));
        } else {
            fprintf(stderr, "unknown argument %s\n", argv[i]);
            return 2;
        }
    }
    std::string names;
    for (const auto isa : native::isas(options)) names += std::string(" ") + pe::cpu::isa_name(isa);
    printf("  instruction sets:%s%s\n", names.c_str(),
           options.cuda ? "; CUDA kernels on the host" : "");
    timed("exp, dtype", [&] { native::test_exp(options), native::test_dtype(); });
    timed("philox_uniform", [&] { native::test_philox_uniform(options); });
    timed("rms_norm", [&] { native::test_rms_norm(options); });
    timed("linear_logprob", [&] { native::test_linear_logprob(options); });
    timed("sample", [&] { native::test_sample(options); });
    printf("  %lld checks passed\n", static_cast<long long>(native::checks));
    return 0;
}
