#include "tensor_cores.h"

#include <cstring>
#include <vector>

#include "fibers.h"
#include "fragments.h"
#include "pyengine/dtype.h"

namespace cuda_on_host {
namespace {

struct Copy {
    void* to;
    const void* from;
    int bytes, present;
};

struct Copies {
    std::vector<Copy> open;                 // not in a group yet
    std::vector<std::vector<Copy>> groups;  // the oldest first
};

std::vector<Copies> copies_of;  // by thread

Copies& my_copies() {
    const auto i = static_cast<size_t>(thread());
    if (copies_of.size() <= i) copies_of.resize(i + 1);
    return copies_of[i];
}

bool is_on(const void* p, int bytes) {
    return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

double element(const uint32_t* registers, int i) {
    return pe::to_float(pe::bf16{static_cast<uint16_t>(registers[i / 2] >> i % 2 * 16)});
}

struct Operands {
    const uint32_t *a, *b;
};

// The maps the other way: which lane has an element, and as its which one.
struct Holder {
    int lane, i;
};

struct Holders {
    Holder a[16][16], b[16][8];

    Holders() {
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 8; ++i) {
                const Place p = place_in_a(lane, i);
                a[p.row][p.column] = {lane, i};
            }
            for (int i = 0; i < 4; ++i) {
                const Place p = place_in_b(lane, i);
                b[p.row][p.column] = {lane, i};
            }
        }
    }
};

}  // namespace

void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static const Holders holders;
    const Operands mine{a, b};
    float sums[4];
    share(&mine, [&](const void* const* of_lane) {
        for (int i = 0; i < 4; ++i) {
            const Place p = place_in_c(thread() % 32, i);
            double sum = c[i];
            for (int k = 0; k < 16; ++k) {
                const Holder left = holders.a[p.row][k], right = holders.b[k][p.column];
                sum += element(static_cast<const Operands*>(of_lane[left.lane])->a, left.i) *
                       element(static_cast<const Operands*>(of_lane[right.lane])->b, right.i);
            }
            sums[i] = static_cast<float>(sum);
        }
    });
    memcpy(c, sums, sizeof sums);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed) {
    if (!is_on(row, 16)) fail("ldmatrix of a row that is not on 16 bytes");
    if (!in_shared_memory(row, 16)) fail("ldmatrix of a row outside shared memory");
    uint32_t found[4];
    share(row, [&](const void* const* of_lane) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            uint16_t half[2];
            for (int i = 0; i < 2; ++i) {
                Place p = place_in_8x8(thread() % 32, i);
                if (transposed) p = {p.column, p.row};
                const char* start = static_cast<const char*>(of_lane[8 * matrix + p.row]);
                memcpy(&half[i], start + 2 * p.column, 2);
            }
            memcpy(&found[matrix], half, 4);
        }
    });
    memcpy(r, found, sizeof found);
}

void cp_async(void* shared, const void* global, int bytes, int present_bytes) {
    if (!is_on(shared, bytes) || (present_bytes > 0 && !is_on(global, bytes)))
        fail("cp.async between places that are not on its size");
    if (!in_shared_memory(shared, bytes)) fail("cp.async to a place outside shared memory");
    memset(shared, 0xff, static_cast<size_t>(bytes));
    my_copies().open.push_back({shared, global, bytes, present_bytes});
}

void cp_async_commit() {
    Copies& copies = my_copies();
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
}

void cp_async_wait(int newest) {
    auto& groups = my_copies().groups;
    while (static_cast<int>(groups.size()) > newest) {
        for (const Copy& copy : groups.front()) {
            memset(copy.to, 0, static_cast<size_t>(copy.bytes));
            if (copy.present > 0) memcpy(copy.to, copy.from, static_cast<size_t>(copy.present));
        }
        groups.erase(groups.begin());
    }
}

void check_no_copies_are_left() {
    Copies& copies = my_copies();
    bool left = !copies.open.empty();
    for (const auto& group : copies.groups) left = left || !group.empty();
    if (left) fail("a thread that ends before its cp.async copies");
    copies.groups.clear();
}

}  // namespace cuda_on_host
