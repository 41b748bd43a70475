// A race checker in place of ThreadSanitizer's: code that g++ -fsanitize=thread compiled calls the functions __tsan_*
// at the end of this file before every access to memory.
//
// Two accesses of different threads to the same bytes, one of them a write, need a barrier between them that both
// threads pass: __syncwarp in a warp, __syncthreads in a block, grid_barrier between blocks. Neither the values nor the
// order in which the scheduler runs the threads matters, so one run with any seed is enough.
//
// Accesses of less than 4 bytes are compared only with one another.

#ifdef TGAN_FAST_RACE_CHECK

#include <stdio.h>

#include <unordered_map>

#include "cuda_on_host_internal.h"

namespace tgan_fast {
namespace host {
namespace race {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr unsigned kThreads = 1024;  // the most a block may have

// One access. Time advances at every barrier; time 0 means never.
struct Access {
    uint32_t time, thread, place;  // block · kThreads + thread; in the library's code
};

enum Relation { kSameThread, kSameWarp, kSameBlock, kOtherBlock };

// The state of some bytes: the last write, and since then the last read by a thread in each relation to the thread that
// read last. A barrier that orders a read also orders all older ones, so no other reads are needed.
struct Cell {
    Access write;
    Access reads[4];
    bool copied;  // by a copy_async that is under way
};

using Cells = std::vector<Cell>;

uint32_t now;
uint32_t grid_time;  // of the last barrier of all blocks
std::vector<uint32_t> block_times, warp_times;
std::unordered_map<const Block*, Cells> shared_cells;
std::unordered_map<uintptr_t, Cells> global_cells;

Relation relation(uint32_t one, uint32_t other) {
    if (one == other) return kSameThread;
    if (one / kLanes == other / kLanes) return kSameWarp;
    return one / kThreads == other / kThreads ? kSameBlock : kOtherBlock;
}

// Returns whether `earlier` happens before what `thread` does now.
bool is_ordered(const Access& earlier, uint32_t thread) {
    const Relation related = relation(earlier.thread, thread);
    return earlier.time == 0 || related == kSameThread || earlier.time < grid_time ||
           (related <= kSameBlock && earlier.time < block_times[thread / kThreads]) ||
           (related == kSameWarp && earlier.time < warp_times[thread / kLanes]);
}

void remember_read(Cell& cell, const Access& access) {
    Access reads[4] = {};
    for (const Access& read : cell.reads) {
        Access& newest = reads[relation(read.thread, access.thread)];
        if (read.time > newest.time) newest = read;
    }
    reads[kSameThread] = access;
    std::copy(reads, reads + 4, cell.reads);
}

std::string where(const void* address) {
    const char* shared = current->block->shared;
    const ptrdiff_t offset = static_cast<const char*>(address) - shared;
    if (offset >= 0 && static_cast<size_t>(offset) < current->block->shared_bytes)
        return "byte " + std::to_string(offset) + " of shared memory";
    char text[32];
    snprintf(text, sizeof text, "%p", address);
    return text;
}

[[noreturn]] void report(const void* address, const Access& earlier, bool wrote, const Access& access, bool writes) {
    static char place[64];
    snprintf(place, sizeof place, "%s", where(address).c_str());
    fail("race: thread %u of block %u %s %s at +0x%x, and thread %u of block %u %s it at +0x%x without a barrier "
         "between",
         earlier.thread % kThreads, earlier.thread / kThreads, wrote ? "wrote" : "read", place, earlier.place,
         access.thread % kThreads, access.thread / kThreads, writes ? "writes" : "reads", access.place);
}

void check(Cell& cell, const void* address, const Access& access, bool write) {
    if (!is_ordered(cell.write, access.thread)) report(address, cell.write, true, access, write);
    if (!write) return remember_read(cell, access);
    for (const Access& read : cell.reads)
        if (!is_ordered(read, access.thread)) report(address, read, false, access, write);
    cell = {access, {}, false};
}

Cell& shared_cell(size_t offset) { return shared_cells.find(current->block)->second[offset / 4]; }

Cell& global_cell(uintptr_t address, bool small) {
    static uintptr_t last_key;
    static Cell* last_cells = nullptr;
    const uintptr_t key = address / kPageBytes * 2 + small;
    const size_t granule = small ? 1 : 4;
    if (!last_cells || key != last_key) {
        Cells& cells = global_cells[key];
        if (cells.empty()) cells.resize(kPageBytes / granule);
        last_cells = cells.data();
        last_key = key;
    }
    return last_cells[address % kPageBytes / granule];
}

bool is_in(const char* address, const char* begin, size_t bytes) { return address >= begin && address < begin + bytes; }

[[noreturn]] void report_copied(const Cell& cell, ptrdiff_t offset, const Access& access) {
    fail("thread %u of block %u accesses byte %td of shared memory at +0x%x, which a copy_async of thread %u at +0x%x, "
         "not waited for, writes",
         access.thread % kThreads, access.thread / kThreads, offset, access.place, cell.write.thread % kThreads,
         cell.write.place);
}

void check_shared(const char* address, size_t bytes, const Access& access, bool write) {
    const Block& block = *current->block;
    const ptrdiff_t offset = address - block.shared;
    if (offset < 0 || offset + bytes > block.shared_bytes)
        fail("thread %u of block %u accesses byte %td of %zu bytes of shared memory at +0x%x", current->thread,
             block.index, offset, block.shared_bytes, access.place);
    for (size_t i = offset / 4 * 4; i < offset + bytes; i += 4) {
        Cell& cell = shared_cell(i);
        if (cell.copied) report_copied(cell, i, access);
        check(cell, block.shared + i, access, write);
    }
}

void check_global(const char* address, size_t bytes, const Access& access, bool write) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
    const size_t granule = bytes < 4 ? 1 : 4;
    for (uintptr_t i = begin / granule * granule; i < begin + bytes; i += granule)
        check(global_cell(i, bytes < 4), reinterpret_cast<const void*>(i), access, write);
}

}  // namespace

void launch_starts() {
    grid_time = ++now;
    block_times.assign(gridDim.x, 0);
    warp_times.assign(gridDim.x * (kThreads / kLanes), 0);
}

void block_starts(const Block& block) { shared_cells[&block].assign(block.shared_bytes / 4 + 1, Cell{}); }

void block_synchronized(const Block& block) { block_times[block.index] = ++now; }

void warp_synchronized(const Fiber& fiber) {
    warp_times[(fiber.block->index * kThreads + fiber.thread) / kLanes] = ++now;
}

void grid_synchronized() { grid_time = ++now; }

// Checks an access by the instruction at `code`.
void access(const void* address, size_t bytes, bool write, const void* code) {
    if (!current) return;
    const char* first = static_cast<const char*>(address);
    if (is_in(first, current->stack, kStackBytes)) return;
    const Block& block = *current->block;
    const Access access = {now, block.index * kThreads + current->thread, place_in_library(code)};
    if (is_in(first, block.forbidden, block.mapped_bytes))
        check_shared(first, bytes, access, write);
    else
        check_global(first, bytes, access, write);
}

void mark_copied(const Copy& copy, bool copied) {
    for (size_t i = 0; i < 16; i += 4) shared_cell(copy.to - current->block->shared + i).copied = copied;
}

void row_is_read(const char* row, const void* code) { access(row, 16, false, code); }

void copy_starts(const Copy& copy) {
    access(copy.from, 16, false, copy.code);
    access(copy.to, 16, true, copy.code);
    mark_copied(copy, true);
}

// The copy may have read and written at any time until it ended.
void copy_ends(const Copy& copy) {
    mark_copied(copy, false);
    access(copy.from, 16, false, copy.code);
    access(copy.to, 16, true, copy.code);
}

}  // namespace race
}  // namespace host
}  // namespace tgan_fast

using tgan_fast::host::race::access;

// ---- What the compiler calls ---------------------------------------------------------------------------------------

#define CODE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                       \
    void __tsan_read##bytes(void* address) { access(address, bytes, false, CODE); }           \
    void __tsan_write##bytes(void* address) { access(address, bytes, true, CODE); }           \
    void __tsan_unaligned_read##bytes(void* address) { access(address, bytes, false, CODE); } \
    void __tsan_unaligned_write##bytes(void* address) { access(address, bytes, true, CODE); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) { access(address, bytes, false, CODE); }
void __tsan_write_range(void* address, size_t bytes) { access(address, bytes, true, CODE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// For static variables in functions and for shared pointers, outside of kernels.
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) { return __atomic_load_n(address, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_fetch_add(volatile int* address, int value, int) {
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
}

#endif
