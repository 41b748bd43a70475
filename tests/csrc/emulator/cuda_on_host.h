// The part of CUDA that csrc/cuda needs, on a CPU: every thread of a kernel is a fiber, and all fibers share one thread
// of the process. Blocks, warps, barriers and shared memory behave as on a GPU, and the order of threads can be chosen.
//
// Mistakes become visible: shared memory starts as NaN; an asynchronous copy leaves NaN at its destination until the
// wait that completes it; deadlocks, writes beyond the shared memory and launches that a GPU refuses are errors of
// launch(), which cudaGetErrorString explains. There is no __shared__: kernels take dynamic shared memory, by
// shared_memory().
#pragma once

// These come before the macros, because the standard library has attributes of the same names.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct HostIndex {
    unsigned x;
};
extern HostIndex threadIdx, blockIdx, blockDim, gridDim;

struct __align__(8) float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(16) double2 {
    double x, y;
};

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffff);

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
};

enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

using cudaStream_t = struct CUstream_st*;

// Returns what went wrong in the last launch, if `error` is its error.
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Replaces the simulated device, of which every library built with this header has its own, and returns the index of
// the new one, which no device had before. The first device, 0, is like an H100: 132 multiprocessors, 232448 bytes of
// shared memory per block, and as many blocks per multiprocessor as fit. Without multiprocessors there is no device.
//
// Of the threads that can run, seed 0 chooses the first, seed 1 the last, and any other seed a random one.
extern "C" int configure_host_device(int multiprocessors, int shared_bytes_optin, int blocks_per_multiprocessor,
                                     unsigned schedule_seed);

namespace tgan_fast {
namespace host {

using Function = const void*;

struct Launch {
    Function kernel;
    void (*call)(Function kernel, const void* argument);
    const void* argument;
    int blocks, threads;
    size_t shared_bytes;
    bool cooperative;
};

cudaError_t run(const Launch& launch);
cudaError_t allow_shared_memory(Function kernel, int bytes);
size_t allowed_shared_bytes(Function kernel);
int resident_blocks(Function kernel, int threads, size_t shared_bytes);
void wait_for_copies(size_t pending);

}  // namespace host

constexpr int kLowestWeight = 2;
constexpr int kWeights = 7 - kLowestWeight;

// The functions of primitives.cuh. The sum over k is in order.
void multiply_add(double (&c)[4], const double (&a)[4], const double (&b)[2]);
void multiply_add(int (&c)[kWeights][4], const unsigned (&a)[4][4], const unsigned (&b)[4][2]);
void load_matrices(unsigned (&words)[4], const char* row);
unsigned permute_bytes(unsigned a, unsigned b, unsigned selector);
int round_to_int(double value);
inline int round_to_int(float value) { return round_to_int(static_cast<double>(value)); }
void copy_async(void* shared, const void* global);
void commit_copies();
char* shared_memory();
void grid_barrier(unsigned* arrivals, unsigned& barriers);
unsigned short round_to_half(float value);
unsigned short round_to_bfloat16(float value);

template <int Pending>
__forceinline__ void wait_for_copies() {
    host::wait_for_copies(Pending);
}

template <typename T>
__forceinline__ T load_fresh(const T* global) {
    return *global;
}

template <typename Argument>
cudaError_t launch(void (*kernel)(Argument), int blocks, int threads, size_t shared_bytes, bool cooperative,
                   cudaStream_t, Argument argument) {
    static_assert(sizeof(Argument) <= 4096, "a kernel's arguments have 4 KB");
    const auto call = [](host::Function function, const void* pointer) {
        reinterpret_cast<void (*)(Argument)>(const_cast<void*>(function))(*static_cast<const Argument*>(pointer));
    };
    return host::run(
        {reinterpret_cast<host::Function>(kernel), call, &argument, blocks, threads, shared_bytes, cooperative});
}

}  // namespace tgan_fast

// `kernel` is a function pointer, or already a const void*.
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
    return tgan_fast::host::allow_shared_memory((tgan_fast::host::Function)kernel, value);
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t shared_bytes) {
    *blocks = tgan_fast::host::resident_blocks((tgan_fast::host::Function)kernel, threads, shared_bytes);
    return cudaSuccess;
}
