// What cuda_on_host.cpp and race_check.cpp share.
#pragma once

#include <setjmp.h>

#include "cuda_on_host.h"

// Where the library is loaded; the linker defines it.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;

namespace tgan_fast {
namespace host {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 128 << 10;

enum class State : uint8_t {
    ready,
    multiply_add,
    multiply_add_digits,
    load_matrices,
    syncwarp,
    syncthreads,
    grid_barrier,
    exited
};
constexpr size_t kStates = 8;

struct Copy {
    char* to;
    const char* from;
    std::array<char, 16> bytes;  // at the time of the call
    const void* code;            // that made the call
};

struct Fiber;

struct Warp {
    Fiber* lanes;
    unsigned size;
    unsigned ready;  // one bit per lane
    unsigned arrived[kStates];
};

struct Block {
    unsigned index, threads;
    unsigned arrived, exited;  // threads: at __syncthreads, at the end
    Fiber* first_fiber;
    char* shared;
    size_t shared_bytes, shared_capacity;
    char* forbidden;  // the mapping around `shared`
    size_t mapped_bytes;
};

struct Fiber {
    jmp_buf context, start;
    char* stack;
    Block* block;
    Warp* warp;
    unsigned thread, lane;
    State state;
    // Operands of a multiply_add; result and row of a load_matrices.
    void* c;
    const void *a, *b;
    std::vector<Copy> copies;    // not yet completed by a wait
    std::vector<size_t> groups;  // where in `copies` each committed group ends
    // The grid barrier that thread 0 of a block waits at.
    unsigned* arrivals;
    unsigned target;
};

// Ends the launch with an error.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

extern Fiber* current;  // of the running thread; null outside of a kernel

// Returns the offset in the library, which addr2line expects.
inline uint32_t place_in_library(const void* code) {
    return static_cast<uint32_t>(static_cast<const char*>(code) - &__ehdr_start);
}

// The events of a launch for the race checker. Without TGAN_FAST_RACE_CHECK nothing is checked.
namespace race {
#ifdef TGAN_FAST_RACE_CHECK
void launch_starts();
void block_starts(const Block& block);
void block_synchronized(const Block& block);
void warp_synchronized(const Fiber& fiber);
void grid_synchronized();
void copy_starts(const Copy& copy);
void copy_ends(const Copy& copy);
void row_is_read(const char* row, const void* code);
#else
inline void launch_starts() {}
inline void block_starts(const Block&) {}
inline void block_synchronized(const Block&) {}
inline void warp_synchronized(const Fiber&) {}
inline void grid_synchronized() {}
inline void copy_starts(const Copy&) {}
inline void copy_ends(const Copy&) {}
inline void row_is_read(const char*, const void*) {}
#endif
}  // namespace race

}  // namespace host
}  // namespace tgan_fast
