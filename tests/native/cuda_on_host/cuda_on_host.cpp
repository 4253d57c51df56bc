// Runs a grid block by block, a block's threads as fibers that yield at barriers and shuffles. It
// refuses what a GPU leaves undefined: a barrier that not all threads of the block reach, a shuffle
// that not all lanes of the warp reach, an empty or oversized launch. Shared memory starts as NaN
// in every block.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PE_ASAN(statement) statement
#else
#define PE_ASAN(statement)
#endif

extern "C" char __start_pe_shared[], __stop_pe_shared[];

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kWarpLanes = 32;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

#if defined(__SANITIZE_ADDRESS__)
// ASan knows of swapcontext what it needs; but that asks the system for the signal mask each time.
struct Place {
    ucontext_t context;
    void begin(char* stack, size_t bytes, void (*f)()) { prepare(&context, stack, bytes, f); }
    void go(Place& to) { swapcontext(&context, &to.context); }
    static void prepare(ucontext_t* c, char* stack, size_t bytes, void (*f)());
};
#else
struct Place {
    ucontext_t context;
    jmp_buf at;
    bool is_new = false;  // it has not stopped anywhere yet
    void begin(char* stack, size_t bytes, void (*f)()) {
        is_new = true;
        prepare(&context, stack, bytes, f);
    }
    void go(Place& to) {
        if (_setjmp(at) != 0) return;
        if (!to.is_new) _longjmp(to.at, 1);
        to.is_new = false;
        setcontext(&to.context);
    }
    static void prepare(ucontext_t* c, char* stack, size_t bytes, void (*f)());
};
#endif

void Place::prepare(ucontext_t* c, char* stack, size_t bytes, void (*f)()) {
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = bytes;
    c->uc_link = nullptr;
    makecontext(c, f, 0);
}

struct Fiber {
    Place place;
    std::vector<char> stack = std::vector<char>(kStackBytes);
    State state = State::kReady;
    uint64_t value = 0;             // offered to the warp's shuffle or at the block's barrier
    const void* offered = nullptr;  // to `share`
    void* fake = nullptr;           // ASan's handle of the fiber's stack
};

std::vector<Fiber> fibers;
Place scheduler;
const std::function<void()>* body = nullptr;
int current = 0;
int block_threads = 0;
bool backwards = false;
PE_ASAN(const void* scheduler_stack = nullptr;)
PE_ASAN(size_t scheduler_stack_bytes = 0;)

void yield(State state) {
    Fiber& self = fibers[static_cast<size_t>(current)];
    self.state = state;
    PE_ASAN(__sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &self.fake,
                                           scheduler_stack, scheduler_stack_bytes));
    self.place.go(scheduler);
    PE_ASAN(__sanitizer_finish_switch_fiber(self.fake, nullptr, nullptr));
}

void entry() {
    PE_ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes));
    (*body)();
    check_no_copies_are_left();
    yield(State::kDone);
}

void start(Fiber& fiber) {
    PE_ASAN(__asan_unpoison_memory_region(fiber.stack.data(), fiber.stack.size()));
    fiber.place.begin(fiber.stack.data(), fiber.stack.size(), entry);
    fiber.state = State::kReady;
}

void resume(int index) {
    Fiber& fiber = fibers[static_cast<size_t>(index)];
    current = index;
    thread_index = dim3(static_cast<unsigned>(index), 0, 0);
    PE_ASAN(void* fake = nullptr);
    PE_ASAN(__sanitizer_start_switch_fiber(&fake, fiber.stack.data(), fiber.stack.size()));
    scheduler.go(fiber.place);
    PE_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr));
}

int count(State state, int begin, int end) {
    int n = 0;
    for (int i = begin; i < end; ++i) n += fibers[static_cast<size_t>(i)].state == state;
    return n;
}

void release(int begin, int end) {
    for (int i = begin; i < end; ++i) fibers[static_cast<size_t>(i)].state = State::kReady;
}

void run_ready(int begin, int end) {
    for (int n = begin; n < end; ++n) {
        const int i = backwards ? begin + end - 1 - n : n;
        if (fibers[static_cast<size_t>(i)].state == State::kReady) resume(i);
    }
}

// Until every lane of the warp stands at a barrier or is done.
void run_warp(int begin, int end) {
    for (;;) {
        run_ready(begin, end);
        const int waiting = count(State::kAtShuffle, begin, end);
        if (waiting == 0) return;
        if (waiting != end - begin)
            fail("a shuffle or barrier that not all lanes of the warp reach");
        release(begin, end);
    }
}

// Not through ASan: the section holds red zones too.
__attribute__((no_sanitize("address"))) void poison_shared() {
#if defined(__SANITIZE_ADDRESS__)
    char* p = __start_pe_shared;
    for (; p + 8 <= __stop_pe_shared; p += 8)
        *reinterpret_cast<volatile uint64_t*>(p) = ~uint64_t{0};
    for (; p < __stop_pe_shared; ++p) *static_cast<volatile char*>(p) = static_cast<char>(0xff);
#else
    memset(__start_pe_shared, 0xff, static_cast<size_t>(__stop_pe_shared - __start_pe_shared));
#endif
}

void run_block(int threads) {
    poison_shared();
    block_threads = threads;
    for (int i = 0; i < threads; ++i) start(fibers[static_cast<size_t>(i)]);
    for (;;) {
        for (int w = 0; w < threads; w += kWarpLanes) {
            const int warp = backwards ? threads - kWarpLanes - w : w;
            run_warp(warp, warp + kWarpLanes);
        }
        if (count(State::kDone, 0, threads) == threads) return;
        if (count(State::kAtBarrier, 0, threads) != threads)
            fail("a barrier that not all threads reach");
        release(0, threads);
    }
}

}  // namespace

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "cuda_on_host: %s (block %u,%u thread %d)\n", what, block_index.x,
            block_index.y, current);
    abort();
}

void set_reversed(bool reversed) { backwards = reversed; }

int thread() { return current; }

int lane() { return current % kWarpLanes; }

bool in_shared_memory(const void* p, int bytes) {
    const char* first = static_cast<const char*>(p);
    return first >= __start_pe_shared && first + bytes <= __stop_pe_shared;
}

void share(const void* offered, const std::function<void(const void* const*)>& read) {
    fibers[static_cast<size_t>(current)].offered = offered;
    yield(State::kAtShuffle);
    const void* of_lane[kWarpLanes];
    const int first = current / kWarpLanes * kWarpLanes;
    for (int i = 0; i < kWarpLanes; ++i)
        of_lane[i] = fibers[static_cast<size_t>(first + i)].offered;
    read(of_lane);
    yield(State::kAtShuffle);
}

void sync_threads() { yield(State::kAtBarrier); }

void sync_warp() { yield(State::kAtShuffle); }

// The second yield keeps a thread from offering its next value before all have read this one.
bool any_of_block(bool value) {
    fibers[static_cast<size_t>(current)].value = value;
    yield(State::kAtBarrier);
    bool any = false;
    for (int i = 0; i < block_threads; ++i) any = any || fibers[static_cast<size_t>(i)].value != 0;
    yield(State::kAtBarrier);
    return any;
}

// The second yield keeps a lane from offering its next value before all have read this one.
uint64_t shuffle(uint64_t value, int source_lane) {
    fibers[static_cast<size_t>(current)].value = value;
    yield(State::kAtShuffle);
    const int source = current / kWarpLanes * kWarpLanes + source_lane;
    const uint64_t result = fibers[static_cast<size_t>(source)].value;
    yield(State::kAtShuffle);
    return result;
}

cudaError_t run_grid(dim3 grid, dim3 block, const std::function<void()>& thread) {
    const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0;
    const bool large =
        grid.x > 2147483647u || grid.y > 65535u || grid.z > 65535u || block.x > 1024u;
    if (empty || large || block.y * block.z != 1 || block.x % kWarpLanes != 0) {
        return cudaErrorInvalidConfiguration;
    }
    if (fibers.size() < block.x) fibers = std::vector<Fiber>(block.x);
    body = &thread;
    blockDim = block;
    gridDim = grid;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t n = 0; n < blocks; ++n) {
        const uint64_t b = backwards ? blocks - 1 - n : n;
        const uint64_t plane = b / grid.x;
        block_index = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(plane % grid.y),
                           static_cast<unsigned>(plane / grid.y));
        run_block(static_cast<int>(block.x));
    }
    return cudaSuccess;
}

}  // namespace cuda_on_host
