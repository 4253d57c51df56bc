// The block manager and the scheduler in small cases worked out by hand; test_scheduler.cpp has the
// random ones.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "pyengine/runtime/scheduler.h"

namespace native {
namespace {

using namespace pe::runtime;
using Table = BlockManager::Table;

std::vector<int32_t> iota(int64_t n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
}

// A table that holds the tokens, all computed.
Table computed(BlockManager& blocks, const std::vector<int32_t>& tokens) {
    Table table;
    std::vector<PageCopy> copies;
    const int64_t n = std::ssize(tokens), m = blocks.match(table, tokens.data(), n);
    CHECK(blocks.reserve(table, m, n, copies) && copies.empty(), "reserve");
    blocks.register_full(table, tokens.data(), n);
    return table;
}

int64_t cached(BlockManager& blocks, const std::vector<int32_t>& tokens) {
    Table table;
    const int64_t m = blocks.match(table, tokens.data(), std::ssize(tokens));
    blocks.release(table);
    return m;
}

void test_match() {
    BlockManager blocks(8, 4, true);
    const auto tokens = iota(14);
    Table a = computed(blocks, tokens);
    CHECK(a.pages.size() == 4 && a.contents.size() == 3 && blocks.num_free() == 4, "a");
    Table b;
    CHECK(blocks.match(b, tokens.data(), 11) == 8, "only whole pages within the limit");
    CHECK(b.pages[0] == a.pages[0] && b.pages[1] == a.pages[1], "the same pages");
    CHECK(blocks.references(a.pages[0]) == 2 && blocks.num_free() == 4, "shared");
    auto other = tokens;
    other[5] = 99;
    CHECK(cached(blocks, other) == 4, "the second page differs");
    other = tokens;
    other[0] = 99;
    CHECK(cached(blocks, other) == 0, "the same second page after another first one");
    Table twin;  // computed without a match, side by side with a
    std::vector<PageCopy> copies;
    CHECK(blocks.reserve(twin, 0, 8, copies), "twin");
    blocks.register_full(twin, tokens.data(), 8);
    CHECK(!blocks.registered(twin.pages[0]) && twin.contents[1] == a.contents[1],
          "first one stays");
    for (Table* table : {&a, &b, &twin}) blocks.release(*table);
    CHECK(blocks.num_free() == 8 && blocks.check({}).empty(), "all given back");
    CHECK(cached(blocks, tokens) == 12, "cached though nobody holds them");
    BlockManager apart(8, 4, false);
    a = computed(apart, tokens);
    CHECK(cached(apart, tokens) == 0, "sharing is off");
}

// Where tokens part in the middle of a page.
void test_copy_beginning() {
    BlockManager blocks(8, 4, true);
    std::vector<PageCopy> copies;
    const auto begin = [&](Table& table, const std::vector<int32_t>& tokens, int64_t limit) {
        copies.clear();
        blocks.match(table, tokens.data(), limit);
        return blocks.copy_beginning(table, tokens.data(), limit, copies);
    };
    const std::vector<int32_t> first = {0, 1, 2, 3, 4, 5, 6, 7}, other = {0, 1, 2, 3, 4, 5, 9, 9};
    Table a = computed(blocks, first), b, c, d;
    CHECK(begin(b, other, 8) == 4 && copies.empty(), "not yet computed: whole pages alone");
    blocks.release(b);
    blocks.settle();
    CHECK(begin(b, other, 8) == 6 && b.pages.size() == 2 && b.pages[0] == a.pages[0], "two more");
    CHECK(copies.size() == 1 && copies[0].from == a.pages[1] && copies[0].to == b.pages[1], "copy");
    CHECK(blocks.references(a.pages[1]) == 1 && !blocks.registered(b.pages[1]), "b's own page");
    CHECK(blocks.reserve(b, 6, 8, copies) && copies.size() == 1, "written in place");
    blocks.register_full(b, other.data(), 8);
    blocks.settle();
    const std::vector<int32_t> nearer = {0, 1, 2, 3, 4, 5, 9, 8};
    CHECK(begin(c, nearer, 8) == 7 && copies[0].from == b.pages[1], "the longest beginning");
    blocks.release(c);
    CHECK(begin(c, first, 7) == 7 && copies[0].from == a.pages[1], "the same tokens up to a limit");
    blocks.release(c);
    CHECK(begin(c, {0, 1, 7, 7}, 4) == 2 && copies[0].from == a.pages[0], "in the first page");
    CHECK(begin(d, {7, 1, 2, 3}, 4) == 0 && d.pages.empty() && copies.empty(), "nothing alike");
    blocks.release(c);
    CHECK(blocks.check({&a, &b}).empty(), blocks.check({&a, &b}));
    blocks.set_version(1);
    CHECK(begin(d, other, 8) == 0, "of other weights");
    BlockManager small(2, 4, true);
    Table e = computed(small, first), f;
    small.settle();
    small.release(e);
    copies.clear();
    CHECK(small.match(f, other.data(), 8) == 4, "match");
    CHECK(small.copy_beginning(f, other.data(), 8, copies) == 6 && copies.empty(), "as it is");
    CHECK(!small.registered(f.pages[1]) && small.check({&f}).empty(), "taken over");
}

void test_eviction() {
    BlockManager blocks(6, 4, true);
    auto first = iota(8), second = iota(8);
    second[0] = 50;
    Table a = computed(blocks, first), b = computed(blocks, second);
    blocks.release(a);
    blocks.release(b);
    CHECK(cached(blocks, first) == 8, "used again: now second is the least recent");
    std::vector<PageCopy> copies;
    Table c;
    CHECK(blocks.reserve(c, 0, 8, copies) && blocks.counts().evicted == 0, "empty pages go first");
    CHECK(blocks.reserve(c, 8, 12, copies) && blocks.counts().evicted == 1, "then the cache");
    CHECK(cached(blocks, second) == 4 && cached(blocks, first) == 8, "the end of the oldest chain");
    CHECK(!blocks.reserve(c, 12, 28, copies) && c.pages.size() == 3, "all or nothing");
    CHECK(blocks.reservable(c, 12) == 24 && blocks.reserve(c, 12, 24, copies), "to the last page");
    CHECK(blocks.reservable(c, 24) == 24 && blocks.num_free() == 0, "full");
    CHECK(cached(blocks, first) == 0, "evicted");
    // The second page of `first` is registered again only after its own first page.
    blocks.release(c);
    a = computed(blocks, first);
    CHECK(cached(blocks, first) == 8 && blocks.check({&a}).empty(), "registered anew");
}

// A page's predecessor may be gone, its slot in use for something else, while the page is held.
void test_evicted_predecessor() {
    BlockManager blocks(4, 2, true);
    std::vector<PageCopy> copies;
    const std::vector<int32_t> text = {1, 2, 3, 4}, other = {7, 8, 3, 4};
    Table first = computed(blocks, {1, 2}), twin, rest;
    CHECK(blocks.reserve(twin, 0, 4, copies), "the same tokens without a match");
    blocks.register_full(twin, text.data(), 4);
    const int32_t page = first.pages[0];
    CHECK(blocks.registered(page) && !blocks.registered(twin.pages[0]), "first's page has the key");
    blocks.release(first);
    CHECK(blocks.reserve(rest, 0, 2, copies) && blocks.reserve(first, 0, 2, copies), "evicted");
    CHECK(first.pages[0] == page && cached(blocks, text) == 0, "first's page is used again");
    blocks.register_full(first, other.data(), 2);
    CHECK(cached(blocks, other) == 2, "twin's second page follows {1, 2}, not {7, 8}");
    CHECK(blocks.check({&first, &twin, &rest}).empty(), "check");
}

void test_version() {
    BlockManager blocks(8, 4, true);
    const auto tokens = iota(8);
    Table a = computed(blocks, {tokens.begin(), tokens.begin() + 6});
    blocks.set_version(1);
    CHECK(cached(blocks, tokens) == 0, "written under version 0");
    std::vector<PageCopy> copies;
    CHECK(blocks.reserve(a, 6, 8, copies), "goes on");
    blocks.register_full(a, tokens.data(), 8);
    CHECK(cached(blocks, tokens) == 0, "begun under version 0");
    Table b = computed(blocks, tokens);
    CHECK(cached(blocks, tokens) == 8, "of version 1");
    blocks.set_version(1);
    CHECK(cached(blocks, tokens) == 8, "no change");
    blocks.set_version(0);
    CHECK(cached(blocks, tokens) == 0 && blocks.check({&a, &b}).empty(), "version 0 is not back");
}

// Memory that was written before is written again first: fresh memory costs a fault each page.
void test_used_pages_are_used_again() {
    BlockManager blocks(100, 4, true);
    for (int round = 0; round < 5; ++round) {
        Table a = computed(blocks, iota(40)), b = computed(blocks, iota(7));
        CHECK(*std::max_element(a.pages.begin(), a.pages.end()) < 12, "of the first pages");
        blocks.release(a);
        blocks.release(b);
        blocks.set_version(static_cast<uint64_t>(round) + 1);
        CHECK(blocks.check({}).empty(), "check");
    }
    Table a = computed(blocks, iota(40));
    blocks.release(a);
    auto other = iota(40);
    other[0] = 99;
    Table b = computed(blocks, other);
    CHECK(cached(blocks, iota(40)) == 40, "but not while they may be found again");
    blocks.release(b);
}

void test_copy_on_write() {
    BlockManager blocks(4, 4, true);
    Table a = computed(blocks, iota(6)), b, c;
    blocks.fork(a, b);
    blocks.fork(a, c);
    CHECK(blocks.num_free() == 2 && blocks.references(a.pages[1]) == 3, "three share it");
    std::vector<PageCopy> copies;
    const int32_t page = a.pages[1];
    CHECK(blocks.reservable(b, 6) == 12, "one page to copy, one new one");
    CHECK(blocks.reserve(b, 6, 7, copies) && blocks.reserve(c, 6, 7, copies), "two free pages");
    CHECK(copies.size() == 2 && copies[0].from == page && copies[0].to == b.pages[1] &&
              copies[1].from == page && copies[1].to == c.pages[1],
          "copies");
    CHECK(blocks.reserve(a, 6, 7, copies) && copies.size() == 2, "the last holder writes in place");
    CHECK(a.pages[1] == page && a.pages[0] == c.pages[0], "the full page is still shared");
    blocks.release(b);
    blocks.fork(a, b);
    CHECK(blocks.reservable(b, 7) == 8 && blocks.reserve(b, 7, 8, copies), "the last free page");
    CHECK(blocks.check({&a, &b, &c}).empty(), blocks.check({&a, &b, &c}));
    blocks.release(c);
    blocks.fork(a, c);
    Table d = computed(blocks, {77});
    CHECK(blocks.num_free() == 0 && blocks.reservable(c, 7) == 7, "no page for the copy");
    CHECK(!blocks.reserve(c, 7, 8, copies) && copies.size() == 3, "refused");
}

void test_equal_prompts_are_computed_once() {
    BlockManager blocks(64, 16, true);
    Scheduler scheduler(blocks, {1024, 16});
    const auto tokens = iota(100);
    for (uint64_t i = 0; i < 4; ++i) scheduler.add(i, 0, tokens.data(), 100, 120);
    const Step& step = scheduler.schedule();
    CHECK(step.rows.size() == 4 && step.rows[0].count == 100, "the oldest computes it");
    for (size_t i = 1; i < 4; ++i) {
        CHECK(step.rows[i].first == 96 && step.rows[i].count == 4, "the rest share six pages");
    }
    CHECK(64 - blocks.num_free() == 6 + 4, "pages");
}

// Prompts that begin alike cost their distinct tokens once, but for a page that is computed in the
// same step.
void test_common_beginnings_are_computed_once() {
    BlockManager blocks(64, 16, true);
    Scheduler scheduler(blocks, {1024, 16});
    auto tokens = iota(100);
    scheduler.add(0, 0, tokens.data(), 100, 120);
    scheduler.schedule(), scheduler.advance();
    tokens[70] = 1000;
    scheduler.add(1, 0, tokens.data(), 100, 120);
    tokens[90] = 1001;
    scheduler.add(2, 0, tokens.data(), 100, 120);
    const Step& step = scheduler.schedule();
    CHECK(step.rows.size() == 2 && step.rows[0].first == 70 && step.rows[0].count == 30, "from 70");
    CHECK(step.rows[1].first == 80 && step.copies.size() == 1, "that page comes with this step");
    scheduler.advance();
    tokens[95] = 1002;
    scheduler.add(3, 0, tokens.data(), 100, 120);
    CHECK(scheduler.schedule().rows[0].first == 95, "from 95");
    CHECK(scheduler.num_matched_tokens() == 70 + 80 + 95, "matched");
}

void test_decoders_before_prefill() {
    BlockManager blocks(64, 16, true);
    Scheduler scheduler(blocks, {10, 16});
    const auto tokens = iota(40);
    std::vector<int32_t> ids;
    for (uint64_t i = 1; i <= 3; ++i) {
        ids.push_back(scheduler.add(i, 0, tokens.data() + 10 * i, 3, 50));
    }
    CHECK(scheduler.schedule().rows.size() == 3, "three short prompts");
    scheduler.advance();
    for (const int32_t id : ids) scheduler.append(id, 7);
    const int32_t old = scheduler.add(0, 0, tokens.data(), 40, 50);
    const Step& step = scheduler.schedule();
    CHECK(step.rows.size() == 4 && step.rows[0].sequence == old && step.rows[0].count == 7,
          "an older prefill takes what three decoders leave");
    scheduler.advance();
    CHECK(scheduler.schedule().rows.size() == 1, "10 rows of it when nobody decodes");
    CHECK(scheduler.num_computed(old) == 7, "computed only by advance");
}

void test_preemption() {
    BlockManager blocks(4, 4, true);
    Scheduler scheduler(blocks, {64, 16});
    const auto tokens = iota(32);
    CHECK(scheduler.refusal(16).empty(), "fits");
    CHECK(scheduler.refusal(17) ==
              "17 tokens need 5 pages of 4 tokens but the KV pool has 4 pages (16 tokens)",
          scheduler.refusal(17));
    const int32_t a = scheduler.add(0, 0, tokens.data(), 8, 16);
    const int32_t b = scheduler.add(1, 0, tokens.data() + 8, 7, 16);
    const int32_t c = scheduler.add(2, 0, tokens.data() + 16, 3, 16);
    CHECK(scheduler.schedule().rows.size() == 2 && !scheduler.is_running(c), "c has no page");
    scheduler.advance();
    scheduler.append(a, 1);
    scheduler.append(b, 1);
    const Step& step = scheduler.schedule();
    CHECK(step.rows.size() == 1 && step.rows[0].sequence == a, "b gave its pages to a");
    CHECK(scheduler.num_preemptions() == 1 && scheduler.num_computed(b) == 0, "b starts over");
    scheduler.advance();
    scheduler.finish(a);
    const Step& next = scheduler.schedule();
    CHECK(next.rows.size() == 2 && next.rows[0].sequence == b, "b, then c");
    CHECK(next.rows[0].first == 4 && next.rows[0].count == 4, "its first page was still cached");
    scheduler.abandon();
    CHECK(scheduler.num_running() == 0 && blocks.num_free() == 4, "abandoned");
    CHECK(scheduler.schedule().rows[0].first == 0, "and nothing is cached");
}

// A page that was copied from is given back in the same step and taken for another copy.
void test_order_of_copies() {
    BlockManager blocks(3, 4, true);
    Scheduler scheduler(blocks, {64, 16});
    const auto tokens = iota(4);
    const int32_t a = scheduler.add(0, 0, tokens.data(), 2, 12);
    const int32_t b = scheduler.add(0, 3, tokens.data() + 2, 2, 12);
    scheduler.schedule(), scheduler.advance();
    const int32_t b2 = scheduler.fork(b, 4, 12), youngest = scheduler.fork(a, 9, 12);
    const int32_t page_a = scheduler.table(a).pages[0], page_b = scheduler.table(b).pages[0];
    for (const int32_t id : {a, b, b2, youngest}) scheduler.append(id, 5);
    const Step& step = scheduler.schedule();
    CHECK(step.rows.size() == 3 && !scheduler.is_running(youngest), "the youngest is preempted");
    CHECK(step.copies.size() == 2 && step.copies[0].from == page_a, "a has a copy");
    CHECK(step.copies[1].from == page_b && step.copies[1].to == page_a, "b's copy is a's old page");
    CHECK(scheduler.table(b2).pages[0] == page_b, "b2 is the last holder of b's old page");
}

void test_victims_row_is_free() {
    BlockManager blocks(4, 4, true);
    Scheduler scheduler(blocks, {4, 16});
    const auto tokens = iota(20);
    const int32_t victim = scheduler.add(1, 0, tokens.data(), 4, 16);
    scheduler.schedule(), scheduler.advance();
    scheduler.append(victim, 5);
    scheduler.add(0, 0, tokens.data() + 4, 14, 16);
    const Step& step = scheduler.schedule();
    CHECK(!scheduler.is_running(victim), "an older one needs all pages");
    CHECK(step.rows.size() == 1 && step.rows[0].count == 4, "and all rows");
}

// What a decode step uses stays where it is in memory.
void test_decoding_does_not_allocate() {
    BlockManager blocks(64, 4, true);
    Scheduler scheduler(blocks, {64, 8});
    const auto tokens = iota(5);
    const int32_t parent = scheduler.add(0, 0, tokens.data(), 5, 100);
    scheduler.schedule(), scheduler.advance();
    std::vector<int32_t> ids;
    for (uint32_t i = 0; i < 2; ++i) ids.push_back(scheduler.fork(parent, i, 100));
    scheduler.finish(parent);
    const void *rows = nullptr, *copies = nullptr, *text = scheduler.tokens(ids[0]),
               *pages = scheduler.table(ids[0]).pages.data(),
               *contents = scheduler.table(ids[0]).contents.data();
    for (int i = 0; i < 95; ++i) {
        for (const int32_t id : ids) scheduler.append(id, i % 3);
        const Step& step = scheduler.schedule();
        CHECK(step.rows.size() == 2, "two rows");
        CHECK(step.copies.size() == (i == 0), "one copy, at the fork");
        if (i == 0) rows = step.rows.data(), copies = step.copies.data();
        CHECK(rows == step.rows.data() && copies == step.copies.data(), "the step moved");
        scheduler.advance();
    }
    CHECK(text == scheduler.tokens(ids[0]) && pages == scheduler.table(ids[0]).pages.data() &&
              contents == scheduler.table(ids[0]).contents.data(),
          "the sequence moved");
    CHECK(scheduler.num_computed(ids[0]) == 100, "to its limit");
}

}  // namespace

void test_block_manager() {
    test_match();
    test_copy_beginning();
    test_eviction();
    test_evicted_predecessor();
    test_version();
    test_used_pages_are_used_again();
    test_copy_on_write();
    test_equal_prompts_are_computed_once();
    test_common_beginnings_are_computed_once();
    test_decoders_before_prefill();
    test_preemption();
    test_order_of_copies();
    test_victims_row_is_free();
    test_decoding_does_not_allocate();
}

}  // namespace native
