#include "pyengine/read_file.h"

#include <unistd.h>
#include <cerrno>

namespace pe {

int read_file(int file, int64_t at, void* to, int64_t count) {
    char* out = static_cast<char*>(to);
    while (count > 0) {
        const ssize_t got = pread(file, out, static_cast<size_t>(count), at);
        if (got == 0) return kEndOfFile;
        if (got < 0 && errno != EINTR) return errno;
        if (got > 0) out += got, at += got, count -= got;
    }
    return 0;
}

}  // namespace pe
