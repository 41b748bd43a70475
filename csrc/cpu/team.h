// Uses the threads of the OpenMP runtime that the process has loaded already, because a second runtime would bring a
// second set of threads that spin on the same cores.
#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))

namespace tgan_fast::cpu {

// Functions of an OpenMP runtime with GNU's interface, which LLVM's and Intel's have on Linux as well.
struct OpenMP {
    void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags) = nullptr;
    void (*barrier)() = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
};

// Smallest number of values that is worth waking another thread.
constexpr std::int64_t kValuesOfThread = 1 << 15;

// Until this is called, and in a forked process, whose runtime has lost its threads, everything runs on one thread.
void use_openmp(const OpenMP& functions);

// The threads that run one function together.
struct Team {
    std::int64_t rank;
    std::int64_t size;
    void (*wait_for_all)();

    INLINE void barrier() const {
        if (size > 1) wait_for_all();
    }

    // This thread's share of `count` items is [begin, end).
    INLINE std::int64_t begin(std::int64_t count) const { return count * rank / size; }
    INLINE std::int64_t end(std::int64_t count) const { return count * (rank + 1) / size; }
};

// Calls body(argument, team) on up to `threads` threads at once, and returns when all have finished.
void run_team(int threads, void (*body)(void* argument, const Team& team), void* argument);

template <typename Function>
INLINE void run_team(int threads, const Function& function) {
    run_team(
        threads, [](void* argument, const Team& team) { (*static_cast<const Function*>(argument))(team); },
        const_cast<Function*>(&function));
}

}  // namespace tgan_fast::cpu
