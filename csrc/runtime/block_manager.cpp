#include "pyengine/runtime/block_manager.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace pe::runtime {

BlockManager::BlockManager(int32_t num_pages, int32_t page_tokens, bool share_prefixes)
    : num_pages_(num_pages),
      page_tokens_(page_tokens),
      share_prefixes_(share_prefixes),
      pages_(index(num_pages)),
      tokens_(index(num_pages) * index(page_tokens)),
      buckets_(std::bit_ceil(2 * index(num_pages)), -1),
      families_(buckets_.size(), -1) {
    assert(num_pages >= 1 && page_tokens >= 1);
    for (int32_t page = num_pages; page-- > 0;) link_free(page);
    root_ = ++last_content_;
}

void BlockManager::set_version(uint64_t version) {
    if (version == version_) return;
    version_ = version;
    forget();
}

void BlockManager::forget() {
    for (int32_t page = 0; page < num_pages_; ++page) {
        if (!registered(page)) continue;
        remove_key(page);
        if (references(page) > 0) continue;
        unlink_free(page);  // to the pages without content, before those never used: their memory
        link_free(page);    // is there already
    }
    root_ = ++last_content_;  // tables begun before now are no predecessors for what is registered
                              // later
}

int64_t BlockManager::match(Table& table, const int32_t* tokens, int64_t limit) {
    assert(table.pages.empty());
    if (!share_prefixes_) return 0;
    int64_t matched = 0;
    uint64_t previous = root_;
    while (matched + page_tokens_ <= limit) {
        const int32_t page = find(previous, tokens + matched);
        if (page < 0) break;
        hold(page);
        previous = pages_[index(page)].content;
        table.pages.push_back(page);
        table.contents.push_back(previous);
        matched += page_tokens_;
    }
    table.root = root_;
    return matched;
}

int64_t BlockManager::copy_beginning(Table& table, const int32_t* tokens, int64_t limit,
                                     std::vector<PageCopy>& copies) {
    const int64_t matched = static_cast<int64_t>(table.pages.size()) * page_tokens_;
    if (!share_prefixes_ || num_free_ == 0) return matched;
    const uint64_t previous = table.contents.empty() ? root_ : table.contents.back();
    const int64_t most = std::min<int64_t>(page_tokens_, limit - matched);
    const int32_t* const wanted = tokens + matched;
    int64_t common = 0;
    int32_t from = -1, page = families_[family(previous)];
    for (int i = 0; page >= 0 && i < kMostSiblings && common < most; ++i) {
        const Page& p = pages_[index(page)];
        if (p.previous == previous && p.since < now_) {
            const int32_t* const held = tokens_of(page);
            const int64_t n = std::mismatch(held, held + most, wanted).first - held;
            if (n > common) common = n, from = page;
        }
        page = p.after;
    }
    if (common == 0) return matched;
    const int32_t to = take();  // it may be that very page, which nobody holds: nothing to copy
    table.pages.push_back(to);
    if (to != from) {
        copies.push_back({from, to});
        ++counts_.copied;
    }
    return matched + common;
}

int64_t BlockManager::reservable(const Table& table, int64_t begin) const {
    int64_t left = num_free_;
    const auto held = static_cast<int64_t>(table.pages.size());
    for (int64_t i = begin / page_tokens_; i < held; ++i) {
        const bool shared = references(table.pages[static_cast<size_t>(i)]) > 1;
        if (shared && left-- == 0) return std::max(begin, i * page_tokens_);
    }
    return (held + left) * page_tokens_;
}

bool BlockManager::reserve(Table& table, int64_t begin, int64_t end,
                           std::vector<PageCopy>& copies) {
    assert(begin >= 0 && begin <= static_cast<int64_t>(table.pages.size()) * page_tokens_);
    if (end <= begin) return true;
    if (end > reservable(table, begin)) return false;
    if (table.pages.empty()) table.root = root_;
    const auto first = static_cast<size_t>(begin / page_tokens_);
    const auto last = static_cast<size_t>(pages_for(end));
    if (table.contents.size() > first) table.contents.resize(first);
    for (size_t i = first; i < std::min(last, table.pages.size()); ++i) {
        const int32_t page = table.pages[i];
        if (references(page) == 1) {
            if (registered(page)) remove_key(page);  // it will hold something else
            continue;
        }
        const int32_t copy = take();
        copies.push_back({page, copy});
        ++counts_.copied;
        drop(page);
        table.pages[i] = copy;
    }
    while (table.pages.size() < last) table.pages.push_back(take());
    return true;
}

void BlockManager::register_full(Table& table, const int32_t* tokens, int64_t computed) {
    if (!share_prefixes_ || table.root != root_) return;
    const auto full = static_cast<size_t>(computed / page_tokens_);
    assert(full <= table.pages.size());
    for (size_t i = table.contents.size(); i < full; ++i) {
        const uint64_t previous = i == 0 ? root_ : table.contents[i - 1];
        const int32_t* const key = tokens + i * index(page_tokens_);
        int32_t page = find(previous, key);
        if (page < 0) add_key(page = table.pages[i], previous, key);
        table.contents.push_back(pages_[index(page)].content);
    }
}

void BlockManager::fork(const Table& from, Table& to) {
    assert(to.pages.empty());
    to.pages.assign(from.pages.begin(), from.pages.end());
    to.contents.assign(from.contents.begin(), from.contents.end());
    to.root = from.root;
    for (const int32_t page : to.pages) hold(page);
}

void BlockManager::release(Table& table) {
    // The last page first: a page is of no use to the cache without those before it.
    for (size_t i = table.pages.size(); i-- > 0;) drop(table.pages[i]);
    table.pages.clear();
    table.contents.clear();
    table.root = 0;
}

size_t BlockManager::bucket(uint64_t previous, const int32_t* tokens) const {
    uint64_t h = previous * 0x9E3779B97F4A7C15u;
    for (int32_t i = 0; i < page_tokens_; ++i) {
        h = (h ^ static_cast<uint32_t>(tokens[i])) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 31;
    }
    return static_cast<size_t>(h) & (buckets_.size() - 1);
}

size_t BlockManager::family(uint64_t previous) const {
    const uint64_t h = previous * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(h ^ (h >> 32)) & (families_.size() - 1);
}

int32_t BlockManager::find(uint64_t previous, const int32_t* tokens) const {
    int32_t page = buckets_[bucket(previous, tokens)];
    while (page >= 0 && !(pages_[index(page)].previous == previous &&
                          std::equal(tokens, tokens + page_tokens_, tokens_of(page)))) {
        page = pages_[index(page)].next;
    }
    return page;
}

void BlockManager::add_key(int32_t page, uint64_t previous, const int32_t* tokens) {
    Page& p = pages_[index(page)];
    assert(p.content == 0);
    std::copy_n(tokens, page_tokens_, tokens_of(page));
    int32_t& head = buckets_[bucket(previous, tokens)];
    p.content = ++last_content_;
    p.previous = previous;
    p.next = head;
    head = page;
    int32_t& newest = families_[family(previous)];
    p.since = now_;
    p.before = -1;
    p.after = newest;
    if (newest >= 0) pages_[index(newest)].before = page;
    newest = page;
}

void BlockManager::remove_key(int32_t page) {
    Page& p = pages_[index(page)];
    int32_t* link = &buckets_[bucket(p.previous, tokens_of(page))];
    while (*link != page) link = &pages_[index(*link)].next;
    *link = p.next;
    p.next = -1;
    (p.before < 0 ? families_[family(p.previous)] : pages_[index(p.before)].after) = p.after;
    if (p.after >= 0) pages_[index(p.after)].before = p.before;
    p.before = p.after = -1;
    p.content = p.previous = 0;
}

// Pages without content are used first, then the cached ones in the order in which they became
// free.
void BlockManager::link_free(int32_t page) {
    Page& p = pages_[index(page)];
    const bool cached = p.content != 0;
    p.older = cached ? newest_ : -1;
    p.newer = cached ? -1 : oldest_;
    (p.older < 0 ? oldest_ : pages_[index(p.older)].newer) = page;
    (p.newer < 0 ? newest_ : pages_[index(p.newer)].older) = page;
    ++num_free_;
}

void BlockManager::unlink_free(int32_t page) {
    Page& p = pages_[index(page)];
    (p.older < 0 ? oldest_ : pages_[index(p.older)].newer) = p.newer;
    (p.newer < 0 ? newest_ : pages_[index(p.newer)].older) = p.older;
    p.older = p.newer = -1;
    --num_free_;
}

int32_t BlockManager::take() {
    const int32_t page = oldest_;
    assert(page >= 0);
    if (registered(page)) {
        remove_key(page);
        ++counts_.evicted;
    }
    hold(page);
    return page;
}

void BlockManager::hold(int32_t page) {
    if (pages_[index(page)].references++ == 0) unlink_free(page);
}

void BlockManager::drop(int32_t page) {
    assert(references(page) > 0);
    if (--pages_[index(page)].references == 0) link_free(page);
}

std::string BlockManager::check(const std::vector<const Table*>& tables) const {
    std::vector<int32_t> held(index(num_pages_));
    for (const Table* table : tables) {
        if (table->contents.size() > table->pages.size()) return "more contents than pages";
        for (const int32_t page : table->pages) {
            if (page < 0 || page >= num_pages_) return "no such page: " + std::to_string(page);
            ++held[index(page)];
        }
    }
    for (int32_t page = 0; page < num_pages_; ++page) {
        if (held[index(page)] != references(page)) {
            return "page " + std::to_string(page) + " has " + std::to_string(references(page)) +
                   " references but is in " + std::to_string(held[index(page)]) + " tables";
        }
    }
    const std::string problem = check_free_list();
    return problem.empty() ? check_keys() : problem;
}

std::string BlockManager::check_free_list() const {
    int32_t linked = 0, before = -1;
    for (int32_t page = oldest_; page >= 0; page = pages_[index(page)].newer) {
        if (++linked > num_pages_) return "the free list is a ring";
        if (references(page) != 0) return "page " + std::to_string(page) + " is free and held";
        if (pages_[index(page)].older != before) return "the free list's links disagree";
        before = page;
    }
    if (before != newest_ || linked != num_free_) return "the free list has lost its end";
    const auto is_used = [](const Page& p) { return p.references > 0; };
    const auto used = std::count_if(pages_.begin(), pages_.end(), is_used);
    if (used + linked != num_pages_) {
        return std::to_string(linked) + " free and " + std::to_string(used) + " used pages of " +
               std::to_string(num_pages_);
    }
    return "";
}

std::string BlockManager::check_keys() const {
    int64_t keys = 0;
    for (const int32_t head : buckets_) {
        for (int32_t page = head; page >= 0; page = pages_[index(page)].next) {
            if (++keys > num_pages_) return "a bucket is a ring";
            if (find(pages_[index(page)].previous, tokens_of(page)) != page) {
                return "the key of page " + std::to_string(page) + " is another's or not found";
            }
        }
    }
    const auto has_key = [](const Page& p) { return p.content != 0; };
    if (std::count_if(pages_.begin(), pages_.end(), has_key) != keys) {
        return "a registered page is in no bucket";
    }
    return check_families(keys);
}

std::string BlockManager::check_families(int64_t keys) const {
    int64_t listed = 0;
    for (size_t i = 0; i < families_.size(); ++i) {
        int32_t before = -1;
        for (int32_t page = families_[i]; page >= 0; page = pages_[index(page)].after) {
            const Page& p = pages_[index(page)];
            if (++listed > keys) return "pages with one predecessor are a ring, or not registered";
            if (p.content == 0 || family(p.previous) != i) return "a page is in another's family";
            if (p.before != before) return "the links of pages with one predecessor disagree";
            before = page;
        }
    }
    return listed == keys ? "" : "a registered page is in no family";
}

}  // namespace pe::runtime
