// Random events on the scheduler, with its invariants checked after each of them, and a shadow of
// the KV cache: what a page's slot holds is a hash of all that its value depends on (tokens up to
// there, and the weights under which each was computed), so a page that is shared, reused or copied
// wrongly is seen by the first row that reads it.
#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "check.h"
#include "pyengine/runtime/scheduler.h"

namespace native {
namespace {

using namespace pe::runtime;

struct Tally {
    int64_t submitted = 0, cancelled = 0, finished = 0, forked = 0, appended = 0, steps = 0,
            empty_steps = 0, rows = 0, chunks = 0, preempted = 0, copied = 0, matched = 0,
            matched_in_step = 0, begun_in_page = 0, evicted = 0, versions = 0, abandoned = 0,
            refused = 0, pools = 0;
    void print(int64_t events, int64_t seeds, double s) const {
        const auto n = [](int64_t x) { return static_cast<long long>(x); };
        printf("    %lld seeds of %lld events in %lld pools: %.1f s\n", n(seeds), n(events),
               n(pools), s);
        printf(
            "    submitted %lld, refused %lld, cancelled %lld, finished %lld, forked %lld, "
            "appended %lld, versions %lld, abandoned %lld\n",
            n(submitted), n(refused), n(cancelled), n(finished), n(forked), n(appended),
            n(versions), n(abandoned));
        printf(
            "    steps %lld (%lld empty), rows %lld, parts of prefills %lld, preempted %lld, "
            "tokens matched %lld\n",
            n(steps), n(empty_steps), n(rows), n(chunks), n(preempted), n(matched));
        printf(
            "    pages matched in the step that writes them %lld, begun as copies %lld, copied "
            "%lld, evicted %lld\n",
            n(matched_in_step), n(begun_in_page), n(copied), n(evicted));
    }
};

// Our own record of a sequence.
struct Twin {
    uint64_t order;
    uint32_t index;
    int64_t limit;
    std::vector<int32_t> tokens;
    std::vector<uint64_t> kv;  // what its computed positions hold

    std::pair<uint64_t, uint32_t> age() const { return {order, index}; }
};

uint64_t mix(uint64_t a, uint64_t b) { return Rng(a ^ (b * 0xD6E8FEB86659FD93u)).next(); }

// One pool, one scheduler, from empty to drained.
class Simulation {
  public:
    Simulation(Rng& rng, Tally& tally)
        : rng_(rng),
          tally_(tally),
          page_tokens_(pick({1, 2, 3, 4, 8, 16})),
          pages_(1 + static_cast<int32_t>(rng.below(40))),
          limits_{pick({1, 2, 3, 5, 8, 16, 64}), pick({1, 2, 3, 5, 8, 16})},
          blocks_(pages_, page_tokens_, rng.below(8) != 0),
          scheduler_(blocks_, limits_),
          shadow_(static_cast<size_t>(pages_ * page_tokens_)) {
        for (auto& tokens : stems_) {
            for (int i = 0; i < 96; ++i) tokens.push_back(token());
        }
        ++tally_.pools;
    }

    void event() {
        const int64_t dice = rng_.below(1000);
        if (dice < 180) {
            submit();
        } else if (dice < 200) {
            if (!alive_.empty()) cancel(any());
        } else if (dice < 300) {
            if (!alive_.empty()) settle(any());
        } else if (dice < 303) {
            const uint64_t version = static_cast<uint64_t>(rng_.below(3));  // old ones come back
            if (version != version_) ++epoch_, ++tally_.versions;
            blocks_.set_version(version_ = version);
        } else {
            step();
        }
        check();
    }

    void drain() {
        const bool by_force = rng_.below(4) == 0;
        for (int64_t i = 0; !alive_.empty(); ++i) {
            CHECK(i < 100000, "the drain does not end");
            if (by_force) {
                cancel(any());
            } else {
                step();
                draining_ = true;
                for (const int32_t id : ids()) settle(id);
            }
            check();
        }
        CHECK(blocks_.num_free() == pages_, "pages have leaked");
        CHECK(scheduler_.num_running() + scheduler_.num_waiting() == 0, "sequences have leaked");
        tally_.matched += scheduler_.num_matched_tokens();
        tally_.copied += blocks_.counts().copied;
        tally_.evicted += blocks_.counts().evicted;
        tally_.preempted += scheduler_.num_preemptions();
    }

  private:
    struct Before {
        bool running;
        int64_t to_do, computed;
        uint64_t root;
    };

    int32_t pick(std::initializer_list<int32_t> values) {
        return values.begin()[rng_.below(static_cast<int64_t>(values.size()))];
    }
    int32_t token() { return static_cast<int32_t>(rng_.below(3)); }
    int32_t any() {
        auto it = alive_.begin();
        std::advance(it, rng_.below(static_cast<int64_t>(alive_.size())));
        return it->first;
    }
    std::vector<int32_t> ids() const {
        std::vector<int32_t> list;
        for (const auto& [id, twin] : alive_) list.push_back(id);
        return list;
    }
    int64_t to_do(int32_t id) const {
        return scheduler_.num_tokens(id) - scheduler_.num_computed(id);
    }
    bool idle(int32_t id) const { return to_do(id) == 0; }
    uint64_t& slot(const BlockManager::Table& table, int64_t position) {
        const int32_t page = table.pages.at(static_cast<size_t>(position / page_tokens_));
        return shadow_[static_cast<size_t>(page * page_tokens_ + position % page_tokens_)];
    }
    static uint64_t value(const Twin& twin, size_t position, uint64_t epoch) {
        const uint64_t before = position == 0 ? 1 : twin.kv[position - 1];
        return mix(mix(before, epoch), static_cast<uint64_t>(twin.tokens[position]));
    }

    void submit() {
        if (static_cast<int64_t>(alive_.size()) > 4 + 2 * limits_.max_sequences) return;
        const auto& stem = stems_[rng_.below(kStems)];
        const int64_t shared = rng_.below(8) == 0 ? rng_.below(96) : rng_.below(24);
        std::vector<int32_t> tokens(stem.begin(), stem.begin() + shared);
        for (int64_t i = rng_.below(4); i >= 0; --i) tokens.push_back(token());
        const auto count = static_cast<int64_t>(tokens.size());
        int64_t limit = count + rng_.below(40);
        if (rng_.below(10) != 0)
            limit = std::max(count, std::min<int64_t>(limit, pages_ * page_tokens_));
        const bool fits = limit <= pages_ * page_tokens_;
        CHECK(scheduler_.refusal(limit).empty() == fits, "refusal");
        if (!fits) {
            ++tally_.refused;
            return;
        }
        const uint64_t order =
            rng_.below(6) == 0 ? static_cast<uint64_t>(rng_.below(1000)) : clock_;
        const uint32_t index = static_cast<uint32_t>(++clock_);
        const int32_t id = scheduler_.add(order, index, tokens.data(), count, limit);
        CHECK(alive_.emplace(id, Twin{order, index, limit, tokens, {}}).second, "id in use");
        ++tally_.submitted;
    }

    void cancel(int32_t id) {
        scheduler_.finish(id);
        alive_.erase(id);
        ++tally_.cancelled;
    }

    // What the session does with a sequence whose tokens are all computed.
    void settle(int32_t id) {
        Twin& twin = alive_.at(id);
        if (!idle(id)) return;
        const bool full = static_cast<int64_t>(twin.tokens.size()) == twin.limit;
        const int64_t dice = rng_.below(100);
        if (!full && !draining_ && dice < 5) {
            for (int64_t i = 1 + rng_.below(4); i > 0; --i) append(fork(id));
        }
        if (full || dice < 8 || draining_) {
            scheduler_.finish(id);
            alive_.erase(id);
            ++tally_.finished;
        } else if (dice < 97) {
            append(id);
            if (dice < 12 && static_cast<int64_t>(twin.tokens.size()) < twin.limit) append(id);
        }  // else it stays as it is for a while
    }

    int32_t fork(int32_t parent) {
        Twin twin = alive_.at(parent);
        twin.index = static_cast<uint32_t>(++clock_);
        const int32_t id = scheduler_.fork(parent, twin.index, twin.limit);
        CHECK(alive_.emplace(id, twin).second, "id in use");
        ++tally_.forked;
        return id;
    }

    void append(int32_t id) {
        Twin& twin = alive_.at(id);
        twin.tokens.push_back(token());
        scheduler_.append(id, twin.tokens.back());
        ++tally_.appended;
    }

    void step() {
        std::map<int32_t, Before> before;
        for (const auto& [id, twin] : alive_) {
            before[id] = {scheduler_.is_running(id), to_do(id), scheduler_.num_computed(id),
                          scheduler_.table(id).root};
        }
        const Step& step = scheduler_.schedule();
        check();
        check_step(step, before);
        ++tally_.steps;
        tally_.empty_steps += step.rows.empty();
        for (auto& [id, twin] : alive_) {
            const auto computed = static_cast<size_t>(scheduler_.num_computed(id));
            const Before& b = before.at(id);
            if (b.running && b.computed == scheduler_.num_computed(id) &&
                b.root == scheduler_.table(id).root) {
                continue;
            }
            twin.kv.clear();  // preempted, or begun with what was cached
            tally_.begun_in_page += computed % static_cast<size_t>(page_tokens_) != 0;
            while (twin.kv.size() < computed)
                twin.kv.push_back(value(twin, twin.kv.size(), epoch_));
        }
        if (!step.rows.empty() && rng_.below(500) == 0) return abandon(step);
        execute(step);
        scheduler_.advance();
        if (rng_.below(4) == 0) return;
        for (const int32_t id : ids()) settle(id);
    }

    // As a model does: copies, then the KV of all rows, then what they attend to.
    void execute(const Step& step) {
        copy_pages(step);
        for (const StepRows& r : step.rows) {
            Twin& twin = alive_.at(r.sequence);
            CHECK(std::equal(twin.tokens.begin(), twin.tokens.end(), scheduler_.tokens(r.sequence)),
                  "tokens");
            for (int64_t i = r.first; i < r.first + r.count; ++i) {
                twin.kv.push_back(value(twin, twin.kv.size(), epoch_));
                slot(scheduler_.table(r.sequence), i) = twin.kv.back();
            }
        }
        for (const StepRows& r : step.rows) {
            const Twin& twin = alive_.at(r.sequence);
            for (int64_t i = 0; i < r.first + r.count; ++i) {
                CHECK(slot(scheduler_.table(r.sequence), i) == twin.kv[static_cast<size_t>(i)],
                      "position " + std::to_string(i) + " of sequence " +
                          std::to_string(r.sequence) + " holds another's KV");
            }
            tally_.rows += r.count;
            tally_.chunks += r.first + r.count < static_cast<int64_t>(twin.tokens.size());
        }
    }

    void copy_pages(const Step& step) {
        for (const PageCopy& c : step.copies) {
            const auto at = [&](int32_t page) { return shadow_.begin() + page * page_tokens_; };
            std::copy_n(at(c.from), page_tokens_, at(c.to));
        }
    }

    void abandon(const Step& step) {
        if (rng_.below(2) == 0) copy_pages(step);
        for (uint64_t& x : shadow_) {
            if (rng_.below(2) == 0) x = rng_.next();
        }
        scheduler_.abandon();
        ++epoch_;
        for (auto& [id, twin] : alive_) twin.kv.clear();
        CHECK(scheduler_.num_running() == 0 && blocks_.num_free() == pages_, "abandoned");
        ++tally_.abandoned;
    }

    void check() {
        std::vector<const BlockManager::Table*> tables;
        int64_t running = 0;
        for (const auto& [id, twin] : alive_) {
            const auto& table = scheduler_.table(id);
            tables.push_back(&table);
            running += scheduler_.is_running(id);
            CHECK(scheduler_.num_tokens(id) == static_cast<int64_t>(twin.tokens.size()), "tokens");
            CHECK(scheduler_.num_computed(id) <= scheduler_.num_tokens(id), "computed");
            CHECK(scheduler_.num_computed(id) <=
                      static_cast<int64_t>(table.pages.size()) * page_tokens_,
                  "computed positions without a page");
        }
        CHECK(running == scheduler_.num_running(), "running");
        CHECK(running + scheduler_.num_waiting() == static_cast<int64_t>(alive_.size()), "waiting");
        const std::string problem = blocks_.check(tables);
        CHECK(problem.empty(), problem);
    }

    void check_step(const Step& step, const std::map<int32_t, Before>& before) {
        int64_t rows = 0, decoders = 0;
        std::set<int32_t> served;
        for (const StepRows& r : step.rows) {
            const Twin& twin = alive_.at(r.sequence);
            CHECK(r.count >= 1 && r.first == scheduler_.num_computed(r.sequence) &&
                      r.first + r.count <= scheduler_.num_tokens(r.sequence),
                  "rows");
            CHECK(served.empty() ||
                      alive_.at(step.rows[served.size() - 1].sequence).age() < twin.age(),
                  "the rows are not in order of age");
            served.insert(r.sequence);
            rows += r.count;
        }
        CHECK(rows <= limits_.max_rows && std::ssize(step.rows) <= limits_.max_sequences, "limits");
        const bool room = rows < limits_.max_rows && std::ssize(step.rows) < limits_.max_sequences;
        for (const auto& [id, b] : before) {
            decoders += b.running && b.to_do == 1 && scheduler_.is_running(id);
        }
        bool passed_over = false;  // a decoder that would have had a page
        for (const auto& [id, b] : before) {
            const bool running = scheduler_.is_running(id);
            const bool admitted = running && !b.running;
            for (const StepRows& r : step.rows) {
                const auto age = alive_.at(r.sequence).age();
                // Whom somebody preempted, or who could not start, nobody younger goes before.
                if (!running && (b.running || !before.at(r.sequence).running)) {
                    CHECK(age < alive_.at(id).age(), "a younger sequence was served before it");
                }
            }
            if (admitted) CHECK(served.count(id) == 1, "admitted without rows");
            if (running && b.running && b.to_do == 1 && served.count(id) == 0) {
                CHECK(!room || blocks_.num_free() == 0, "a decoder was passed over");
                passed_over |= !room;
            }
        }
        for (size_t i = 0; passed_over && i < step.rows.size(); ++i) {
            const Before& b = before.at(step.rows[i].sequence);
            if (b.running && b.to_do == 1) continue;
            CHECK(i == 0 && step.rows[0].count <= std::max<int64_t>(1, limits_.max_rows - decoders),
                  "a prefill went before a decoder");
        }
        check_progress(step);
        check_written_pages(step);
    }

    void check_progress(const Step& step) {
        const auto older = [](const auto& a, const auto& b) {
            return a.second.age() < b.second.age();
        };
        const auto oldest = std::min_element(alive_.begin(), alive_.end(), older);
        if (oldest == alive_.end()) return;
        if (!idle(oldest->first)) {
            CHECK(!step.rows.empty() && step.rows[0].sequence == oldest->first,
                  "the oldest sequence has no rows");
        }
    }

    // A page is written by one sequence; others hold it only if this step fills it and they begin
    // after it.
    void check_written_pages(const Step& step) {
        std::map<int32_t, int32_t> writer;
        for (const StepRows& r : step.rows) {
            const auto& pages = scheduler_.table(r.sequence).pages;
            for (int64_t i = r.first / page_tokens_; i <= (r.first + r.count - 1) / page_tokens_;
                 ++i) {
                const int32_t page = pages.at(static_cast<size_t>(i));
                CHECK(writer.emplace(page, r.sequence).second, "two sequences write one page");
                CHECK(blocks_.references(page) == 1 || blocks_.registered(page),
                      "a page in two tables is written to");
            }
        }
        for (const auto& [id, twin] : alive_) {
            const auto& pages = scheduler_.table(id).pages;
            for (size_t i = 0; i < pages.size(); ++i) {
                const auto w = writer.find(pages[i]);
                if (w == writer.end() || w->second == id) continue;
                const int64_t end = (static_cast<int64_t>(i) + 1) * page_tokens_;
                CHECK(end <= scheduler_.num_computed(id), "a page is written under its reader");
                ++tally_.matched_in_step;
            }
        }
    }

    static constexpr int64_t kStems = 3;
    Rng& rng_;
    Tally& tally_;
    int32_t page_tokens_, pages_;
    Limits limits_;
    BlockManager blocks_;
    Scheduler scheduler_;
    std::vector<uint64_t> shadow_;
    std::vector<int32_t> stems_[kStems];
    std::map<int32_t, Twin> alive_;
    uint64_t version_ = 0, epoch_ = 0, clock_ = 1000;
    bool draining_ = false;
};

}  // namespace

void test_scheduler(const Options& options) {
    Tally tally;
    const auto start = std::chrono::steady_clock::now();
    for (int64_t seed = 0; seed < options.seeds; ++seed) {
        Rng rng(static_cast<uint64_t>(seed));
        for (int64_t done = 0; done < options.events;) {
            Simulation simulation(rng, tally);
            for (int64_t n = 1 + rng.below(4000); n > 0 && done < options.events; --n, ++done) {
                simulation.event();
            }
            simulation.drain();
        }
    }
    const std::chrono::duration<double> s = std::chrono::steady_clock::now() - start;
    tally.print(options.events, options.seeds, s.count());
    if (options.events * options.seeds < 100000) return;
    CHECK(tally.preempted > 0 && tally.copied > 0 && tally.matched_in_step > 0 &&
              tally.begun_in_page > 0 && tally.evicted > 0 && tally.refused > 0 && tally.chunks > 0,
          "a path was not taken");
}

}  // namespace native
