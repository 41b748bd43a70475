// The hardware operations that the kernels use, one function each. Without nvcc, cuda_on_host.h (tests/csrc) defines
// the same names and runs blocks and threads on a CPU.
#pragma once

#ifndef __CUDACC__
#include "cuda_on_host.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace tgan_fast {

// Products of two digits below this weight, which is the sum of their d, are left out. Together they are below 2⁻³⁸ of
// the largest product of integers.
constexpr int kLowestWeight = 2;
constexpr int kWeights = 7 - kLowestWeight;

// A warp's C += A·B in float64 on the tensor cores: A is 16×8, B 8×8, C 16×8. With g = l / 4, t = l % 4, lane l holds
//   a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]
//   b = B[t][g], B[t + 4][g]
//   c = C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]
__device__ __forceinline__ void multiply_add(double (&c)[4], const double (&a)[4], const double (&b)[2]) {
#if __CUDA_ARCH__ >= 900
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
    // Four smaller products, whose elements lie in the same lanes as in the larger one.
    for (int k = 0; k < 2; ++k)
        for (int half = 0; half < 2; ++half)
            asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
                : "d"(a[2 * k + half]), "d"(b[k]));
#endif
}

// A warp's C[w] += Σ A_i·B_j over the digits i + j = w + kLowestWeight, on the int8 tensor cores: 13 products of 16×32
// and 32×8 digits, whose int32 sums are exact. With g = l / 4, t = l % 4, lane l holds, with four digits in a word,
//   a[i] = A_i[g][4t…], A_i[g + 8][4t…], A_i[g][16 + 4t…], A_i[g + 8][16 + 4t…]
//   b[j] = B_j[4t…][g], B_j[16 + 4t…][g]
//   c[w] = C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]
__device__ __forceinline__ void multiply_add(int (&c)[kWeights][4], const unsigned (&a)[4][4],
                                             const unsigned (&b)[4][2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (i + j < kLowestWeight) continue;
            int (&sum)[4] = c[i + j - kLowestWeight];
            asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
        }
}

// Loads four matrices of 8 rows and 16 bytes from shared memory, of which lanes 8·i to 8·i + 7 pass the rows of matrix
// i. Lane l gets bytes 4·(l % 4) to 4·(l % 4) + 3 of row l / 4 of each: operands of multiply_add.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// Returns the four bytes that the hexadecimal digits of `selector` choose, the lowest first: 0–3 from a, 4–7 from b.
__device__ __forceinline__ unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    return __byte_perm(a, b, selector);
}

// The nearest int; beyond its range the largest or smallest one.
__device__ __forceinline__ int round_to_int(float value) { return __float2int_rn(value); }
__device__ __forceinline__ int round_to_int(double value) { return __double2int_rn(value); }

// Asynchronous copy of 16 bytes between addresses that are multiples of 16. It bypasses the L1 cache, so it sees what
// other blocks wrote before a grid_barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "l"(global)
                 : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last `Pending` groups of this thread are in flight. The copies of other threads need a
// __syncthreads() too.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// The block's dynamic shared memory, 16-byte aligned.
__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(16) char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

// Loads that see what other blocks wrote before a grid_barrier.
__device__ __forceinline__ double load_fresh(const double* global) { return __ldcg(global); }
__device__ __forceinline__ double2 load_fresh(const double2* global) { return __ldcg(global); }
__device__ __forceinline__ unsigned load_fresh(const unsigned* global) { return __ldcg(global); }

// Makes all blocks of a cooperative launch wait for one another; afterwards each sees what any of them wrote before.
// `arrivals` must be 0 at launch, and `barriers` counts the barriers that this block has passed.
__device__ __forceinline__ void grid_barrier(unsigned* arrivals, unsigned& barriers) {
    ++barriers;
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
        unsigned arrived;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(arrivals) : "memory");
        } while (arrived < barriers * gridDim.x);
    }
    __syncthreads();
}

__device__ __forceinline__ unsigned short round_to_half(float value) {
    return __half_as_ushort(__float2half_rn(value));
}

__device__ __forceinline__ unsigned short round_to_bfloat16(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// Launches kernel(argument) with `shared_bytes` of dynamic shared memory; a cooperative launch has all its blocks
// resident at once.
template <typename Argument>
cudaError_t launch(void (*kernel)(Argument), int blocks, int threads, size_t shared_bytes, bool cooperative,
                   cudaStream_t stream, Argument argument) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cooperative ? 1 : 0;
    void* arguments[] = {&argument};
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
}

}  // namespace tgan_fast

#endif
