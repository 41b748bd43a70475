// The kernels for one instruction set. setup.py compiles this file once per set, with KERNELS as the set's name.
#include "kernels.h"

#include "batch_norm.h"
#include "optimizer.h"

namespace tgan_fast::cpu {

namespace {

void forward(const BatchNormForward& call, int threads) {
    switch (call.type) {
        case Type::float32:
            return batch_norm_forward<float>(call, threads);
        case Type::float64:
            return batch_norm_forward<double>(call, threads);
        case Type::bfloat16:
            return batch_norm_forward<BFloat16>(call, threads);
        case Type::float16:
            return batch_norm_forward<Float16>(call, threads);
    }
}

void backward(const BatchNormBackward& call, int threads) {
    switch (call.type) {
        case Type::float32:
            return batch_norm_backward<float>(call, threads);
        case Type::float64:
            return batch_norm_backward<double>(call, threads);
        case Type::bfloat16:
            return batch_norm_backward<BFloat16>(call, threads);
        case Type::float16:
            return batch_norm_backward<Float16>(call, threads);
    }
}

}  // namespace

extern const Kernels KERNELS = {forward, backward, rmsprop, adam};

}  // namespace tgan_fast::cpu
