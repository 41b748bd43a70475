// Selects the compiled kernels that this CPU can run.
#include <vector>

#include "kernels.h"

namespace tgan_fast::cpu {

extern const Kernels baseline;
#ifdef __x86_64__
extern const Kernels avx2, avx512;
#endif

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> found;
#ifdef __x86_64__
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back({"avx512", &avx512});
    if (has_avx2) found.push_back({"avx2", &avx2});
#endif
    found.push_back({"baseline", &baseline});
    return found;
}

double* scratch(std::int64_t count) {
    thread_local std::vector<double> memory;
    if (static_cast<std::int64_t>(memory.size()) < count) {
        memory = {};  // freed first, so that both need not exist at once
        memory.resize(count);
    }
    return memory.data();
}

}  // namespace tgan_fast::cpu
