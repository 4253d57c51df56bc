// Pages of the KV cache: who holds which, who may write, and which can be shared.
//
// A page holds page_tokens consecutive positions of one or more sequences; a sequence's table lists
// its pages in order. Pages are counted by reference. A page held by several tables is read-only:
// reserve() gives the writer a copy.
//
// Prefix cache: a full page is registered under the key (content id of the page before it, its
// tokens); the first page's predecessor is the root of the weights' version. Keys are compared
// exactly, and every registered page gets a new 64-bit content id that is never used again: a page
// whose predecessor was evicted can be found by no one. A page that nobody holds keeps its content
// until it is needed, the least recently used one first.
//
// Where tokens part in the middle of a page, a sequence begins with a copy of it: the positions
// before that hold what it would compute. So prompts that begin alike cost their distinct tokens
// once, whatever the size of a page; only a page that is computed in the very step that would copy
// it cannot be copied yet.
//
// Not thread-safe. After construction memory is allocated only when a table outgrows its capacity.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pe::runtime {

struct PageCopy {
    int32_t from, to;  // whole pages; done one after the other, before the step writes anything
};

class BlockManager {
  public:
    struct Table {
        std::vector<int32_t> pages;
        std::vector<uint64_t> contents;  // content ids of its first, matchable pages
        uint64_t root = 0;               // of the weights under which its first page was begun
    };
    struct Counts {
        int64_t copied = 0, evicted = 0;  // pages
    };

    BlockManager(int32_t num_pages, int32_t page_tokens, bool share_prefixes);  // each >= 1

    int32_t num_pages() const { return num_pages_; }
    int32_t page_tokens() const { return page_tokens_; }
    int32_t num_free() const { return num_free_; }  // held by no table, cached ones too
    int32_t references(int32_t page) const { return pages_[index(page)].references; }
    bool registered(int32_t page) const { return pages_[index(page)].content != 0; }
    const Counts& counts() const { return counts_; }

    int64_t pages_for(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }

    // Of the weights: pages written under another version are never matched again, not even when it
    // comes back.
    void set_version(uint64_t version);
    void forget();  // no page written until now is matched again

    // Appends to an empty table the longest chain of cached pages that hold tokens[0, m), m <=
    // limit; returns m.
    int64_t match(Table& table, const int32_t* tokens, int64_t limit);

    // After match(), which left a table of whole pages: appends a copy (to be done as those of
    // reserve) of the page that has most tokens in common with what follows them, if any has one.
    // Returns how many of tokens[0, limit) the table now holds. Of the pages that follow the same
    // ones it looks at the kMostSiblings newest. Takes a free page unless it copies nothing.
    int64_t copy_beginning(Table& table, const int32_t* tokens, int64_t limit,
                           std::vector<PageCopy>& copies);
    // What was registered until now has been computed: it may be copied.
    void settle() { ++now_; }

    // The largest end for which reserve(table, begin, end) would succeed; begin when not even one
    // position would.
    int64_t reservable(const Table& table, int64_t begin) const;

    // Makes positions [begin, end) writable: new pages at the end, copies of pages that others hold
    // as well (appended to `copies`; the last holder keeps the page itself). False and no change
    // when there are too few free pages. Positions before begin must have pages.
    bool reserve(Table& table, int64_t begin, int64_t end, std::vector<PageCopy>& copies);

    // The pages wholly within [0, computed) become matchable. Of two pages with one key the first
    // stays registered.
    void register_full(Table& table, const int32_t* tokens, int64_t computed);

    void fork(const Table& from, Table& to);  // `to`, empty before, shares all pages
    void release(Table& table);

    // Empty, or what is inconsistent, if `tables` are all that hold pages. For tests.
    std::string check(const std::vector<const Table*>& tables) const;

  private:
    struct Page {
        int32_t references = 0;
        int32_t older = -1, newer = -1;      // neighbours in the list of free pages
        int32_t next = -1;                   // in its bucket
        int32_t before = -1, after = -1;     // neighbours among those with the same predecessor
        uint64_t content = 0, previous = 0;  // 0: not registered
        uint64_t since = 0;                  // when it was registered
    };
    static constexpr int kMostSiblings = 64;

    static size_t index(int32_t page) { return static_cast<size_t>(page); }
    int32_t* tokens_of(int32_t page) { return &tokens_[index(page) * index(page_tokens_)]; }
    const int32_t* tokens_of(int32_t page) const {
        return &tokens_[index(page) * index(page_tokens_)];
    }

    size_t bucket(uint64_t previous, const int32_t* tokens) const;
    size_t family(uint64_t previous) const;  // where the list of those with it begins
    int32_t find(uint64_t previous, const int32_t* tokens) const;  // -1: none
    void add_key(int32_t page, uint64_t previous, const int32_t* tokens);
    void remove_key(int32_t page);
    void link_free(int32_t page);
    void unlink_free(int32_t page);
    int32_t take();  // a free page, its old content forgotten
    void hold(int32_t page);
    void drop(int32_t page);
    std::string check_free_list() const;
    std::string check_keys() const;
    std::string check_families(int64_t keys) const;  // of so many registered pages

    const int32_t num_pages_, page_tokens_;
    const bool share_prefixes_;
    std::vector<Page> pages_;
    std::vector<int32_t> tokens_;    // (num_pages, page_tokens): the keys of registered pages
    std::vector<int32_t> buckets_;   // first page of each; a power of two of them
    std::vector<int32_t> families_;  // newest page of each; as many
    int32_t oldest_ = -1, newest_ = -1, num_free_ = 0;
    uint64_t version_ = 0, last_content_ = 0, root_ = 0, now_ = 1;
    Counts counts_;
};

}  // namespace pe::runtime
