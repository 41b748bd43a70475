#include "team.h"

#include <pthread.h>

namespace tgan_fast::cpu {

namespace {

OpenMP openmp;
bool is_forked = false;
// Registered at load time, because the parent may use OpenMP's threads before it uses these kernels.
const int registered = pthread_atfork(nullptr, nullptr, [] {
    openmp = {};
    is_forked = true;
});

struct Call {
    void (*body)(void*, const Team&);
    void* argument;
};

}  // namespace

void use_openmp(const OpenMP& functions) {
    (void)registered;
    if (!is_forked) openmp = functions;
}

void run_team(int threads, void (*body)(void*, const Team&), void* argument) {
    if (threads <= 1 || openmp.parallel == nullptr) return body(argument, {0, 1, nullptr});
    Call call = {body, argument};
    openmp.parallel(
        [](void* pointer) {
            const Call& call = *static_cast<Call*>(pointer);
            call.body(call.argument, {openmp.thread_num(), openmp.num_threads(), openmp.barrier});
        },
        &call, static_cast<unsigned>(threads), 0);
}

}  // namespace tgan_fast::cpu
