// The law on CUDA: a token has one log-probability, bit for bit, in sampler, scorer and trainer, before and after updates. Sessions on the
// CUDA device, and a trainer of the same kernels, run whole on the host.
#include "cuda_trainer.h"
#include "tiny_decoder.h"

namespace native {
namespace {

using pe::runtime::Request;
using pe::runtime::SampleOutput;

std::unique_ptr<pe::runtime::Session> cuda_session(
    const std::vector<pe::runtime::DecoderWeights>& weights,
    const pe::runtime::SessionSettings& settings, const std::vector<Memory>& pools) {
    std::vector<void*> memory;
    for (const Memory& m : pools) memory.push_back(m.data());
    return std::make_unique<pe::runtime::Session>(
        settings, pe::runtime::make_cuda_device(
                      {settings.num_pages, settings.page_tokens, settings.limits.max_rows}, weights,
                      memory, nullptr));
}

// All samples of some requests that a session on CUDA takes in steps of at most so many rows.
std::vector<std::vector<SampleOutput>> run_requests(
    const std::vector<pe::runtime::DecoderWeights>& weights, const std::vector<Request>& requests,
    int64_t max_rows, std::vector<float> coefficients = {1.0f}) {
    const pe::runtime::SessionSettings settings{.num_pages = 40,
                                                .page_tokens = 16,
                                                .limits = {max_rows, max_rows},
                                                .coefficients = std::move(coefficients)};
    std::vector<Memory> pools;
    for (const auto& w : weights)
        pools.emplace_back(settings.num_pages * w.page_elements(16) * pe::dtype_bytes(w.compute));
    const auto session = cuda_session(weights, settings, pools);
    std::vector<int64_t> handles;
    for (const Request& r : requests) handles.push_back(session->submit(r));
    for (int64_t steps = 0; steps < 100000; ++steps) {
        const pe::runtime::StepResult result = session->step();
        CHECK(result.bad_request < 0, "not finite on cuda");
        if (!result.worked) break;
    }
    std::vector<std::vector<SampleOutput>> outputs;
    for (const int64_t handle : handles) outputs.push_back(session->take(handle));
    return outputs;
}

std::vector<TrainedTree> trees_of(const std::vector<Request>& requests,
                                  const std::vector<std::vector<SampleOutput>>& outputs) {
    std::vector<TrainedTree> trees;
    for (size_t i = 0; i < requests.size(); ++i) {
        TrainedTree tree{requests[i].prompt, {}};
        for (const SampleOutput& o : outputs[i]) tree.responses.push_back(o.token_ids);
        trees.push_back(std::move(tree));
    }
    return trees;
}

void check_bits(const std::vector<float>& got, const std::vector<float>& want,
                const std::string& what) {
    CHECK(got.size() == want.size() && same_bytes(got.data(), want.data(), got.size() * 4), what);
}

// Sampler = scorer = trainer, alone and beside others, whatever the steps.
std::vector<TrainedTree> check_law(const CudaTrainer& trainer, const std::string& what) {
    Rng rng(5);
    std::vector<Request> requests;
    for (const int64_t prompt : {3, 33, 16}) {
        const auto id = static_cast<uint64_t>(requests.size());
        requests.push_back({.prompt = random_tokens(rng, prompt),
                            .sampling = {.max_tokens = 5 + prompt / 4, .seed = 3, .request_id = id},
                            .num_samples = 2});
    }
    const auto outputs = run_requests({trainer.weights()}, requests, 100);
    const std::vector<TrainedTree> trees = trees_of(requests, outputs);
    std::vector<float> sampled, alone, scored;
    for (const auto& of_request : outputs) {
        for (const SampleOutput& o : of_request)
            sampled.insert(sampled.end(), o.logprobs.begin(), o.logprobs.end());
    }
    check_bits(trainer.logprobs(trees), sampled, what + ": a batch of trees");
    for (const TrainedTree& tree : trees) {
        const std::vector<float> part = trainer.logprobs({tree});
        alone.insert(alone.end(), part.begin(), part.end());
    }
    check_bits(alone, sampled, what + ": trees alone");
    for (size_t i = 0; i < requests.size(); ++i) {
        requests[i].num_samples = std::ssize(trees[i].responses);
        requests[i].given = trees[i].responses;
    }
    for (const int64_t max_rows : {100, 7}) {  // 7: prompts in pieces
        scored.clear();
        for (const auto& of_request : run_requests({trainer.weights()}, requests, max_rows)) {
            for (const SampleOutput& o : of_request)
                scored.insert(scored.end(), o.logprobs.begin(), o.logprobs.end());
        }
        check_bits(scored, sampled, what + ": scored in steps of " + std::to_string(max_rows));
    }
    return trees;
}

double sum_of(const std::vector<float>& x) {
    double total = 0;
    for (const float v : x) total += v;
    return total;
}

// `once`: no updates.
void check_training(pe::PackedKind kind, bool once) {
    const std::string what = kind == pe::PackedKind::kF32 ? "f32" : "bf16";
    CudaTrainer trainer({.kind = kind}, 11);
    const std::vector<TrainedTree> trees = check_law(trainer, what);
    const std::vector<float> before = trainer.logprobs(trees);
    const std::vector<float> dlogprob(before.size(), -1.0f);  // of what is minimised

    check_bits(trainer.backward(trees, dlogprob), before, what + ": the trainer's own pass");
    std::vector<Matrix> gradients;
    for (const Matrix* g : trainer.gradients()) gradients.push_back(g->copy());
    trainer.zero_grad();
    size_t first = 0;
    for (const TrainedTree& tree : trees) {
        size_t n = 0;
        for (const auto& r : tree.responses) n += r.size();
        trainer.backward({tree}, {dlogprob.begin() + static_cast<int64_t>(first),
                                  dlogprob.begin() + static_cast<int64_t>(first + n)});
        first += n;
    }
    const auto again = trainer.gradients();
    for (size_t i = 0; i < again.size(); ++i) {
        CHECK(again[i]->same_bits(gradients[i]),
              what + ": gradient " + std::to_string(i) + ", tree by tree");
    }
    if (once) return;
    for (int64_t step = 1; step <= 3; ++step) {
        trainer.step(step, 3e-3f);
        trainer.zero_grad();
        trainer.backward(trees, dlogprob);
    }
    CHECK(sum_of(trainer.logprobs(trees)) > sum_of(before) + 1.0, what + ": what is learnt");
    check_law(trainer, what + " after updates");
}

// Every kind of decoder: a session on CUDA beside one on the CPU.
void check_sessions(const TinyShape& shape) {
    const TinyDecoder decoder(shape, 21);
    Rng rng(9);
    Request drawn{.prompt = random_tokens(rng, 37),
                  .sampling = {.temperature = 0.8,
                               .top_k = 20,
                               .repetition_penalty = 1.2f,
                               .max_tokens = 12,
                               .seed = 4,
                               .top_logprobs = 3,
                               .entropy = true},
                  .num_samples = 3};
    const std::string what = "a session on cuda, " + shape.text();
    const auto on_cpu = alone({&decoder}, drawn);
    const auto on_cuda = run_requests({decoder.weights()}, {drawn}, 128).at(0);
    const auto in_pieces = run_requests({decoder.weights()}, {drawn}, 5).at(0);
    for (size_t i = 0; i < on_cuda.size(); ++i) {
        check_same(in_pieces[i], on_cuda[i], drawn.sampling, 1, what + " in pieces");
        if (shape.kind == pe::PackedKind::kF32)
            check_same(on_cuda[i], on_cpu[i], drawn.sampling, 1, what + " against the CPU");
    }
    Request given = drawn;  // the CPU's tokens: log-probs to the rounding of bf16
    for (const SampleOutput& o : on_cpu) given.given.push_back(o.token_ids);
    const auto scored = run_requests({decoder.weights()}, {given}, 128).at(0);
    for (size_t i = 0; i < scored.size(); ++i) {
        for (size_t t = 0; t < scored[i].logprobs.size(); ++t) {
            CHECK(std::fabs(scored[i].logprobs[t] - on_cpu[i].logprobs[t]) <
                      (shape.kind == pe::PackedKind::kF32 ? 1e-5f : 0.1f),
                  what + " scores the CPU's tokens");
        }
    }
}

// Two models in lock step, drawn from a combination of their logits.
void check_two_models() {
    const TinyDecoder a({.kind = pe::PackedKind::kF32}, 1), b({.kind = pe::PackedKind::kF32}, 2);
    Rng rng(2);
    const Request request{.prompt = random_tokens(rng, 20),
                          .sampling = {.max_tokens = 9, .seed = 8},
                          .num_samples = 2};
    const auto got = run_requests({a.weights(), b.weights()}, {request}, 64, {0.7f, 0.3f}).at(0);
    const auto want = alone({&a, &b}, request, {0.7f, 0.3f});
    for (size_t i = 0; i < got.size(); ++i)
        check_same(got[i], want[i], request.sampling, 2, "two models on cuda");
}

}  // namespace

void test_cuda_engine(const Options& options) {
    if (!options.cuda) return;
    pe::set_num_threads(1);
    pe::cpu::set_active_isa(pe::cpu::best_isa());
    check_training(pe::PackedKind::kBF16, options.small);
    if (options.small) return;
    check_training(pe::PackedKind::kF32, false);
    for (const TinyShape& shape : tiny_shapes()) check_sessions(shape);
    check_two_models();
}

}  // namespace native
