#include "team.h"

#include <pthread.h>

namespace tgan_fast::cpu {

namespace {

OpenMP openmp;

struct Call {
    void (*body)(void*, const Team&);
    void* argument;
};

}  // namespace

void use_openmp(const OpenMP& functions) {
    openmp = functions;
    static const int registered = pthread_atfork(nullptr, nullptr, [] { openmp = {}; });
    (void)registered;
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
