// The kernels and the scheduler without Python: `native [--no-cuda] [--small] [--isa NAME]
// [--exp-stride N] [--events N] [--seeds K] [--only TEST,TEST]`. Exit status 0 means every check passed.
#include <chrono>

#include "check.h"

namespace {

std::string only;  // the tests to run, between commas; empty: all

template <typename F>
void timed(const char* name, const F& f) {
    if (!only.empty() && only.find("," + std::string(name) + ",") == std::string::npos) return;
    native::digest = 0;
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> s = std::chrono::steady_clock::now() - start;
    printf("  %s: %.1f s, bits %016llx\n", name, s.count(),
           static_cast<unsigned long long>(native::digest));
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
        } else if (arg == "--events" && i + 1 < argc) {
            options.events = std::stoll(argv[++i]);
        } else if (arg == "--seeds" && i + 1 < argc) {
            options.seeds = std::stoll(argv[++i]);
        } else if (arg == "--only" && i + 1 < argc) {
            only = "," + std::string(argv[++i]) + ",";
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
    timed("layer_norm", [&] { native::test_layer_norm(options); });
    timed("listwise_loss", [&] { native::test_listwise_loss(options); });
    timed("log", [&] { native::test_log(options); });
    timed("activations", [&] { native::test_activations(options); });
    timed("adamw", [&] { native::test_adamw(options); });
    timed("pairwise_loss", [&] { native::test_pairwise_loss(options); });
    timed("parallel", [] { native::test_parallel(); });
    timed("packed_tile", [] { native::test_packed_tile(); });
    timed("philox_uniform", [&] { native::test_philox_uniform(options); });
    timed("rms_norm", [&] { native::test_rms_norm(options); });
    timed("linear", [&] { native::test_linear(options); });
    timed("linear_backward", [&] { native::test_linear_backward(options); });
    timed("rope", [&] { native::test_rope(options); });
    timed("linear_logprob", [&] { native::test_linear_logprob(options); });
    timed("linear_kl", [&] { native::test_linear_kl(options); });
    timed("mma", [&] { native::test_mma(options); });
    timed("lion", [&] { native::test_lion(options); });
    timed("kv_cache", [&] { native::test_kv_cache(options); });
    timed("attention", [&] { native::test_attention(options); });
    timed("attention_backward", [&] { native::test_attention_backward(options); });
    timed("sample", [&] { native::test_sample(options); });
    timed("segment_sum", [&] { native::test_segment_sum(options); });
    timed("token_loss", [&] { native::test_token_loss(options); });
    timed("block_manager", [] { native::test_block_manager(); });
    timed("scheduler", [&] { native::test_scheduler(options); });
    timed("session_values", [&] { native::test_session_values(options); });
    timed("session_schedules", [&] { native::test_session_schedules(options); });
    timed("session", [&] { native::test_session(options); });
    timed("cuda_engine", [&] { native::test_cuda_engine(options); });
    if (native::checks == 0) {
        fprintf(stderr, "no test is called %s\n", only.c_str());
        return 2;
    }
    printf("  %lld checks passed\n", static_cast<long long>(native::checks));
    return 0;
}
