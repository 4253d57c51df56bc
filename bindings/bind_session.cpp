// The sampling session: a decoder's weights as borrowed tensors, requests, steps and results.
#include <pybind11/stl.h>

#include <chrono>
#include <memory>

#include "bind.h"
#include "check.h"
#include "packed_arg.h"
#include "pyengine/runtime/session.h"

namespace pe::bindings::session {
namespace {

using runtime::DecoderWeights;
using runtime::Session;

constexpr const char* kOp = "session";

[[noreturn]] void bad(const std::string& what) {
    throw py::value_error("[" + std::string(kOp) + "] " + what);
}

py::object item(const py::dict& d, const char* key) {
    if (!d.contains(key)) bad(std::string("weights must have '") + key + "'");
    return d[key];
}

TensorArg tensor(const py::dict& d, const char* key) {
    const TensorArg t = borrow_optional(kOp, key, item(d, key));
    if (t.present() && t.is_cuda) value_error(t, "must be on the CPU but is on " + t.device_text());
    return t;
}

VectorView f32_vector(const py::dict& d, const char* key, int64_t size, bool required) {
    const TensorArg t = tensor(d, key);
    if (!t.present() && required) bad(std::string(key) + " must be given");
    check_dtype(t, {DType::kF32});
    check_shape(t, "(size,)", {size});
    return vector(t);
}

MatrixView table(const py::dict& d, const char* key, int64_t cols, bool required) {
    const TensorArg t = tensor(d, key);
    if (!t.present() && required) bad(std::string(key) + " must be given");
    if (!t.present()) return {};
    check_dtype(t, {DType::kF32, DType::kBF16});
    check_dims(t, "(rows, columns)", 2);
    check_shape(t, "(rows, columns)", {t.shape[0], cols});
    return matrix(t);
}

runtime::NormWeights norm(const py::dict& d, const std::string& name, int64_t size, bool bias,
                          bool required = true) {
    runtime::NormWeights w;
    w.weight = f32_vector(d, (name + ".weight").c_str(), size, required);
    if (bias && w.weight) w.bias = f32_vector(d, (name + ".bias").c_str(), size, true);
    return w;
}

// (data, scale, kind, N, K)
PackedMatrix packed(const py::dict& d, const char* key, int64_t N, int64_t K, DType compute) {
    const auto parts = item(d, key).cast<py::tuple>();
    if (parts.size() != 5) bad(std::string(key) + " must be (data, scale, kind, N, K)");
    const TensorArg data = borrow(kOp, key, parts[0]), scale = borrow_optional(kOp, key, parts[1]);
    const PackedMatrix p = packed_matrix(kOp, data, scale, parts[2].cast<std::string>(),
                                         parts[3].cast<int64_t>(), parts[4].cast<int64_t>());
    if (p.N != N || p.K != K) {
        bad(std::string(key) + " must be of shape (" + std::to_string(N) + ", " +
            std::to_string(K) + ") but is of (" + std::to_string(p.N) + ", " + std::to_string(p.K) +
            ")");
    }
    if ((p.kind == PackedKind::kF32) != (compute == DType::kF32)) {
        bad(std::string(key) + " must be packed for " + dtype_text(compute));
    }
    return p;
}

runtime::LinearWeights linear(const py::dict& d, const std::string& name, int64_t N, int64_t K,
                              DType compute) {
    return {packed(d, name.c_str(), N, K, compute),
            f32_vector(d, (name + ".bias").c_str(), N, false)};
}

runtime::LayerWeights layer(const py::dict& d, const DecoderWeights& w, bool layer_norm) {
    const int64_t D = w.hidden_size, Q = w.num_heads * w.head_dim;
    const int64_t KV = w.num_kv_heads * w.head_dim, I = w.intermediate_size;
    runtime::LayerWeights l;
    l.attention_norm = norm(d, "attn_norm", D, layer_norm);
    l.qkv = linear(d, "qkv", Q + 2 * KV, D, w.compute);
    l.q_norm = norm(d, "q_norm", w.head_dim, layer_norm, false);
    l.k_norm = norm(d, "k_norm", w.head_dim, layer_norm, false);
    l.o = linear(d, "o", D, Q, w.compute);
    l.mlp_norm = norm(d, "mlp_norm", D, layer_norm);
    l.gated = item(d, "gated").cast<bool>();
    const py::object window = item(d, "window");
    l.window = window.is_none() ? 0 : window.cast<int64_t>();
    if (l.window < 0) bad("window must be None or >= 1");
    l.residual_multiplier = item(d, "residual_multiplier").cast<float>();
    l.up = linear(d, "up", l.gated ? 2 * I : I, D, w.compute);
    l.down = linear(d, "down", D, I, w.compute);
    l.cos = table(d, "cos", w.head_dim / 2, false);
    l.sin = table(d, "sin", w.head_dim / 2, static_cast<bool>(l.cos));
    if (l.cos && (l.cos.dtype != DType::kF32 || l.sin.dtype != DType::kF32 ||
                  l.cos.rows != l.sin.rows || w.head_dim % 2 != 0))
        bad("cos and sin must be float32 of one shape and head_dim even");
    return l;
}

int64_t size_of(const py::dict& d, const char* key) {
    const auto n = item(d, key).cast<int64_t>();
    if (n < 1) bad(std::string(key) + " must be >= 1 but is " + std::to_string(n));
    return n;
}

DecoderWeights decoder_weights(const py::dict& d) {
    DecoderWeights w;
    w.vocab_size = size_of(d, "vocab_size");
    w.hidden_size = size_of(d, "hidden_size");
    w.num_heads = size_of(d, "num_heads");
    w.num_kv_heads = size_of(d, "num_kv_heads");
    w.head_dim = size_of(d, "head_dim");
    w.intermediate_size = size_of(d, "intermediate_size");
    if (w.num_heads % w.num_kv_heads != 0 || w.head_dim > kMaxHeadDim) {
        bad("num_heads must be a multiple of num_kv_heads and head_dim at most " +
            std::to_string(kMaxHeadDim) + " but they are " + std::to_string(w.num_heads) + ", " +
            std::to_string(w.num_kv_heads) + " and " + std::to_string(w.head_dim));
    }
    w.norm_eps = item(d, "norm_eps").cast<float>();
    w.embedding_multiplier = item(d, "embedding_multiplier").cast<float>();
    w.attention_scale = item(d, "attention_scale").cast<float>();
    const auto compute = item(d, "compute").cast<std::string>();
    if (compute != "float32" && compute != "bfloat16")
        bad("compute must be 'float32' or 'bfloat16' but is '" + compute + "'");
    w.compute = compute == "bfloat16" ? DType::kBF16 : DType::kF32;
    const bool layer_norm = item(d, "layer_norm").cast<bool>();
    w.embed = table(d, "embed", w.hidden_size, true);
    if (w.embed.rows != w.vocab_size) bad("embed must have vocab_size rows");
    w.positions = table(d, "positions", w.hidden_size, false);
    for (const py::handle& each : item(d, "layers").cast<py::list>())
        w.layers.push_back(layer(each.cast<py::dict>(), w, layer_norm));
    w.final_norm = norm(d, "final_norm", w.hidden_size, layer_norm);
    w.head = packed(d, "head", w.vocab_size, w.hidden_size, w.compute);
    return w;
}

runtime::Sampling sampling(const py::dict& d) {
    runtime::Sampling s;
    s.temperature = item(d, "temperature").cast<double>();
    s.top_k = item(d, "top_k").cast<int64_t>();
    s.top_p = item(d, "top_p").cast<double>();
    s.min_p = item(d, "min_p").cast<double>();
    s.repetition_penalty = item(d, "repetition_penalty").cast<float>();
    s.presence_penalty = item(d, "presence_penalty").cast<float>();
    s.frequency_penalty = item(d, "frequency_penalty").cast<float>();
    s.logit_bias = item(d, "logit_bias").cast<std::vector<std::pair<int32_t, float>>>();
    s.stop_ids = item(d, "stop_ids").cast<std::vector<int32_t>>();
    s.max_tokens = item(d, "max_tokens").cast<int64_t>();
    s.min_tokens = item(d, "min_tokens").cast<int64_t>();
    s.seed = static_cast<uint64_t>(item(d, "seed").cast<int64_t>());
    s.request_id = static_cast<uint64_t>(item(d, "request_id").cast<int64_t>());
    s.top_logprobs = item(d, "top_logprobs").cast<int64_t>();
    s.entropy = item(d, "entropy").cast<bool>();
    return s;
}

const char* finish_name(runtime::Finish finish) {
    switch (finish) {
        case runtime::Finish::kStop: return "stop";
        case runtime::Finish::kLength: return "length";
        case runtime::Finish::kAbort: return "abort";
        case runtime::Finish::kNone: break;
    }
    return "none";
}

runtime::Finish finish_of(const std::string& name) {
    return name == "stop" ? runtime::Finish::kStop : runtime::Finish::kAbort;
}

// What Python holds: the session, and the tensors that it reads.
class PySession {
  public:
    PySession(const py::list& models, const py::list& pools, std::vector<float> coefficients,
              int32_t num_pages, int32_t page_tokens, bool share_prefixes, int64_t max_rows,
              int64_t max_sequences) {
        if (models.empty() || models.size() > static_cast<size_t>(kMaxSampledModels) ||
            models.size() != pools.size() || models.size() != coefficients.size())
            bad("models, pools and coefficients must be 1 to 3 of each");
        if (num_pages < 1 || max_rows < 1 || max_sequences < 1)
            bad("num_pages, max_rows and max_sequences must be >= 1");
        if (page_tokens != 16 && page_tokens != 32 && page_tokens != 64)
            bad("page_tokens must be 16, 32 or 64 but is " + std::to_string(page_tokens));
        std::vector<DecoderWeights> weights;
        std::vector<void*> memory;
        for (size_t i = 0; i < models.size(); ++i) {
            weights.push_back(decoder_weights(models[i].cast<py::dict>()));
            if (weights[i].vocab_size != weights[0].vocab_size)
                bad("models must share one vocabulary");
            const TensorArg pool = borrow(kOp, "pool", pools[i]);
            check_dtype(pool, {weights[i].compute});
            check_shape(pool, "(num_pages * page elements,)",
                        {num_pages * weights[i].page_elements(page_tokens)});
            vector(pool);
            memory.push_back(pool.data);
            held_.append(models[i]);
        }
        pools_ = pools;
        session_ = std::make_unique<Session>(runtime::SessionSettings{num_pages,
                                                                      page_tokens,
                                                                      share_prefixes,
                                                                      {max_rows, max_sequences},
                                                                      std::move(coefficients)},
                                             weights, memory);
    }

    void set_weights(size_t model, const py::dict& weights) {
        const DecoderWeights w = decoder_weights(weights), &old = session_->weights(model);
        if (w.page_elements(1) != old.page_elements(1) || w.vocab_size != old.vocab_size ||
            w.hidden_size != old.hidden_size || w.intermediate_size != old.intermediate_size ||
            w.num_heads != old.num_heads || w.compute != old.compute)
            bad("weights must be of the same sizes as before");
        for (size_t i = 0; i < w.layers.size(); ++i) {
            if (w.layers[i].residual_multiplier != old.layers[i].residual_multiplier)
                bad("weights must have the residual_multiplier of before");
        }
        session_->set_weights(model, w);
        held_[model] = weights;
    }

    int64_t submit(std::vector<int32_t> prompt, const py::dict& settings, int64_t num_samples,
                   std::vector<std::vector<int32_t>> given) {
        const int64_t V = session_->weights(0).vocab_size;
        const auto check_ids = [&](const char* name, const std::vector<int32_t>& ids) {
            for (const int32_t id : ids) {
                if (id < 0 || id >= V) {
                    bad(std::string(name) + " must hold ids in [0, " + std::to_string(V) +
                        ") but holds " + std::to_string(id));
                }
            }
        };
        runtime::Request request{std::move(prompt), sampling(settings), num_samples,
                                 std::move(given)};
        const runtime::Sampling& s = request.sampling;
        check_ids("prompt", request.prompt);
        check_ids("stop_ids", s.stop_ids);
        for (const auto& [id, bias] : s.logit_bias) check_ids("logit_bias", {id});
        int64_t longest = request.given.empty() ? s.max_tokens : 0;
        for (const std::vector<int32_t>& ids : request.given) {
            check_ids("given", ids);
            longest = std::max(longest, static_cast<int64_t>(ids.size()));
        }
        if (request.prompt.empty() || request.num_samples < 1 || s.max_tokens < 1 ||
            s.top_logprobs < 0 || s.top_logprobs > V)
            bad("a request must have a prompt, samples, max_tokens >= 1 and top_logprobs in [0, "
                "V]");
        if (!request.given.empty() && static_cast<int64_t>(request.given.size()) != num_samples)
            bad("given must be one list for each sample");
        longest += static_cast<int64_t>(request.prompt.size());
        check_positions(longest);
        if (const std::string why = session_->refusal(longest); !why.empty()) bad(why);
        return session_->submit(std::move(request));
    }

    // (worked, bad request, bad sample) after up to `steps` steps or about `seconds`.
    py::tuple step(int64_t steps, double seconds) {
        runtime::StepResult result;
        {
            py::gil_scoped_release release;
            using Clock = std::chrono::steady_clock;
            const auto start = Clock::now();
            for (int64_t i = 0; i < steps; ++i) {
                result = session_->step();
                if (!result.worked || result.bad_request >= 0) break;
                if (std::chrono::duration<double>(Clock::now() - start).count() > seconds) break;
            }
        }
        return py::make_tuple(result.worked, result.bad_request, result.bad_sample);
    }

    py::list take(int64_t request) {
        py::list samples;
        for (const runtime::SampleOutput& o : session_->take(request)) {
            samples.append(py::make_tuple(o.token_ids, o.logprobs, o.sampling_logprobs, o.kept_mass,
                                          o.entropy, o.top_ids, o.top_logprobs,
                                          finish_name(o.finish)));
        }
        return samples;
    }

    // (request, sample, position, token, log-prob under the first model, finish or "none")
    py::list take_events() {
        py::list events;
        const auto M = static_cast<size_t>(session_->num_models());
        for (const runtime::TokenEvent& e : session_->take_events()) {
            const runtime::SampleOutput& o = session_->output(e.request, e.sample);
            const auto i = static_cast<size_t>(e.position);
            const bool last = e.position + 1 == o.size();
            events.append(py::make_tuple(e.request, e.sample, e.position, o.token_ids[i],
                                         o.logprobs[i * M], last ? finish_name(o.finish) : "none"));
        }
        return events;
    }

    std::vector<int32_t> token_ids(int64_t request, int32_t sample) const {
        return session_->output(request, sample).token_ids;
    }
    Session& session() { return *session_; }

  private:
    void check_positions(int64_t tokens) const {
        for (size_t m = 0; m < static_cast<size_t>(session_->num_models()); ++m) {
            const int64_t most = session_->weights(m).most_positions(tokens);
            if (tokens > most) {
                bad("a request of " + std::to_string(tokens) + " tokens must fit " +
                    std::to_string(most) + " positions");
            }
        }
    }

    py::list held_, pools_;
    std::unique_ptr<Session> session_;
};

py::dict statistics(PySession& s) {
    const runtime::Scheduler& scheduler = s.session().scheduler();
    const runtime::BlockManager& blocks = s.session().blocks();
    py::dict d;
    d["tokens"] = s.session().num_tokens();
    d["finished"] = s.session().num_finished();
    d["open"] = s.session().num_open();
    d["computed_rows"] = s.session().num_computed_rows();
    d["matched_tokens"] = scheduler.num_matched_tokens();
    d["preemptions"] = scheduler.num_preemptions();
    d["copied_pages"] = blocks.counts().copied;
    d["evicted_pages"] = blocks.counts().evicted;
    d["free_pages"] = blocks.num_free();
    return d;
}

}  // namespace

void bind(py::module_& m) {
    py::class_<PySession>(m, "Session")
        .def(py::init<const py::list&, const py::list&, std::vector<float>, int32_t, int32_t, bool,
                      int64_t, int64_t>(),
             py::kw_only(), py::arg("models"), py::arg("pools"), py::arg("coefficients"),
             py::arg("num_pages"), py::arg("page_tokens"), py::arg("share_prefixes"),
             py::arg("max_rows"), py::arg("max_sequences"))
        .def("set_weights", &PySession::set_weights)
        .def("forget", [](PySession& s) { s.session().forget(); })
        .def("refusal", [](PySession& s, int64_t tokens) { return s.session().refusal(tokens); })
        .def("set_version", [](PySession& s, uint64_t v) { s.session().set_version(v); })
        .def("submit", &PySession::submit, py::arg("prompt"), py::arg("settings"),
             py::arg("num_samples"), py::arg("given"))
        .def("step", &PySession::step, py::arg("steps"), py::arg("seconds"))
        .def("take", &PySession::take)
        .def("take_events", &PySession::take_events)
        .def("token_ids", &PySession::token_ids)
        .def("collect_events", [](PySession& s, bool c) { s.session().collect_events(c); })
        .def("end_sample",
             [](PySession& s, int64_t request, int32_t sample, const std::string& finish) {
                 s.session().end_sample(request, sample, finish_of(finish));
             })
        .def("clear", [](PySession& s) { s.session().clear(); })
        .def("statistics", &statistics);
    m.def("kv_page_elements",
          [](int64_t layers, int64_t heads, int64_t head_dim, int64_t page_tokens) {
              return layers * 2 * kv_elements_per_page(heads, head_dim, page_tokens);
          });
}

}  // namespace pe::bindings::session
