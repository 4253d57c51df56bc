// Reading of open files, without a memory mapping: a file that has become shorter is an error then, not a signal.
#pragma once

#include <cstdint>

namespace pe {

constexpr int kEndOfFile = -1;

// Bytes [at, at + count) of an open file; may be called by several threads at once. Returns 0, kEndOfFile, or an errno.
int read_file(int file, int64_t at, void* to, int64_t count);

}  // namespace pe
