// What the twins of instructions need of the fibers that stand for threads.
#pragma once

#include <functional>

namespace cuda_on_host {

// Stops the program, naming block and thread.
[[noreturn]] void fail(const char* what);

// Every lane of the warp offers something of its own; `read` then sees what each of the 32 offered, which must stay until this returns.
void share(const void* offered, const std::function<void(const void* const* of_lane)>& read);

bool in_shared_memory(const void* p, int bytes);

int thread();  // that is running

// Called by the thread that ends, and before a block begins.
void check_no_copies_are_left();

}  // namespace cuda_on_host
