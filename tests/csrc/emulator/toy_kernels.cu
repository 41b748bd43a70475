// Correct and faulty kernels that test_cuda_on_host.py runs.

#include "fixed_point.cuh"

using namespace tgan_fast;

namespace {

struct Products {
    const double *a, *b;
    double* c;
    int depth, repeats;
};

// C += A·B of every warp, 16×depth by depth×8.
__global__ void products(Products p) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    double* const out = p.c + threadIdx.x / 32 * 128;
    double c[4], a[4], b[2];
    for (int e = 0; e < 4; ++e) c[e] = out[(g + e / 2 * 8) * 8 + 2 * t + e % 2];
    for (int repeat = 0; repeat < p.repeats; ++repeat)
        for (int k = 0; k < p.depth; k += 8) {
            for (int e = 0; e < 4; ++e) a[e] = p.a[(g + e % 2 * 8) * p.depth + k + t + e / 2 * 4];
            for (int e = 0; e < 2; ++e) b[e] = p.b[(k + t + 4 * e) * 8 + g];
            multiply_add(c, a, b);
        }
    for (int e = 0; e < 4; ++e) out[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = c[e];
}

struct IntegerProducts {
    const int *a, *b;
    std::int64_t* c;
    int depth;
};

// C = A·B of integers, 16×depth by depth×8, without the digits' products of the lowest weights.
__global__ void integer_products(IntegerProducts p) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int sums[kWeights][4] = {}, four[4];
    for (int k = 0; k < p.depth; k += 32) {
        unsigned a[4][4], b[4][2];
        for (int e = 0; e < 4; ++e) {
            for (int i = 0; i < 4; ++i) four[i] = p.a[(g + e % 2 * 8) * p.depth + k + e / 2 * 16 + 4 * t + i];
            for (int d = 0; d < 4; ++d) a[d][e] = to_digits(four).plane[d];
        }
        for (int e = 0; e < 2; ++e) {
            for (int i = 0; i < 4; ++i) four[i] = p.b[(k + e * 16 + 4 * t + i) * 8 + g];
            for (int d = 0; d < 4; ++d) b[d][e] = to_digits(four).plane[d];
        }
        multiply_add(sums, a, b);
    }
    for (int e = 0; e < 4; ++e) p.c[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = combined(sums, e);
}

// The synchronization that a kernel leaves out.
enum Missing : int { nothing, first_barrier, second_barrier, the_wait };

struct Matrices {
    const unsigned* in;
    unsigned* out;
    Missing missing;
};

// Loads four matrices of 8 rows, in the opposite order of their places in memory.
__global__ void matrices(Matrices p) {
    unsigned* const shared = reinterpret_cast<unsigned*>(shared_memory());
    const int lane = threadIdx.x;
    for (int word = lane; word < 128; word += 32) shared[word] = p.in[word];
    if (p.missing != first_barrier) __syncwarp();
    unsigned words[4];
    load_matrices(words, shared_memory() + 16 * (31 - lane));
    for (int i = 0; i < 4; ++i) p.out[4 * lane + i] = words[i];
}

struct Sum {
    const double* in;
    double *out, *partial;
    unsigned* arrivals;
    Missing missing;
};

__device__ double block_sum(double value, Missing missing) {
    double* const shared = reinterpret_cast<double*>(shared_memory());
    shared[threadIdx.x] = value;
    if (missing != first_barrier) __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        if (missing != second_barrier) __syncthreads();
    }
    return shared[0];
}

__global__ void sum(Sum s) {
    const double total = block_sum(s.in[blockIdx.x * blockDim.x + threadIdx.x], s.missing);
    if (threadIdx.x == 0) s.out[blockIdx.x] = total;
}

// Does the last steps of `sum`, in one warp.
__global__ void warp_sum(Sum s) {
    double* const shared = reinterpret_cast<double*>(shared_memory());
    shared[threadIdx.x] = s.in[threadIdx.x];
    for (unsigned half = 16; half > 0; half /= 2) {
        if (s.missing != first_barrier) __syncwarp();
        const double other = shared[(threadIdx.x + half) % 32];
        if (s.missing != second_barrier) __syncwarp();
        shared[threadIdx.x] += other;
    }
    s.out[threadIdx.x] = shared[threadIdx.x];
}

// Gives every block the sum of all blocks' numbers, and then overwrites what the other blocks read.
__global__ void grid_sum(Sum s) {
    unsigned barriers = 0;
    const double total = block_sum(s.in[blockIdx.x * blockDim.x + threadIdx.x], nothing);
    if (threadIdx.x == 0) s.partial[blockIdx.x] = total;
    if (s.missing != first_barrier) grid_barrier(s.arrivals, barriers);
    double all = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) all += load_fresh(s.partial + i);
    if (s.missing != second_barrier) grid_barrier(s.arrivals, barriers);
    if (threadIdx.x == 0) s.partial[blockIdx.x] = s.out[blockIdx.x] = all;
}

struct Tiles {
    const double* in;
    double* out;
    int tiles;
    Missing missing;
};

// out[i] = in[i ^ 2] through shared memory: two numbers per thread in every tile, while the next tile is copied.
__global__ void swap_pairs(Tiles p) {
    double* const shared = reinterpret_cast<double*>(shared_memory());
    const int tile_size = 2 * blockDim.x, mine = 2 * threadIdx.x, others = mine ^ 2;
    const auto start = [&](int tile) {
        if (tile < p.tiles) copy_async(shared + tile % 2 * tile_size + mine, p.in + tile * tile_size + mine);
        commit_copies();
    };
    start(0);
    for (int tile = 0; tile < p.tiles; ++tile) {
        start(tile + 1);
        if (p.missing != the_wait) wait_for_copies<1>();
        if (p.missing != first_barrier) __syncthreads();
        for (int i = 0; i < 2; ++i) p.out[tile * tile_size + mine + i] = shared[tile % 2 * tile_size + others + i];
        if (p.missing != second_barrier) __syncthreads();
    }
    wait_for_copies<0>();
}

// The faults that test_cuda_on_host.py names; the kernel has 64 doubles of shared memory.
enum Fault : int {
    no_fault,
    barrier_for_some,
    collective_for_some,
    different_collectives,
    small_warp,
    grid_barrier_for_some,
    write_before,
    write_behind,
    write_far_behind,
    copy_not_waited_for,
    copy_of_changed_source,
    copy_misaligned,
    copy_beyond,
    matrix_misaligned,
    matrix_beyond,
    write_by_all,
    write_by_blocks,
    write_neighbors,
    index_beyond,
    vector_misaligned,
};

struct Faulty {
    Fault fault;
    double* memory;
    unsigned* arrivals;
};

__device__ void wrong_meeting(const Faulty& f) {
    double c[4] = {}, a[4] = {}, b[2] = {};
    unsigned barriers = 0;
    if (f.fault == barrier_for_some && threadIdx.x != 3) __syncthreads();
    if (f.fault == collective_for_some && threadIdx.x % 32 < 16) multiply_add(c, a, b);
    if (f.fault == different_collectives) threadIdx.x % 2 ? __syncwarp() : multiply_add(c, a, b);
    if (f.fault == small_warp) multiply_add(c, a, b);
    if (f.fault == grid_barrier_for_some && blockIdx.x != 1) grid_barrier(f.arrivals, barriers);
}

__device__ void wrong_matrices(const Faulty& f) {
    unsigned words[4];
    load_matrices(words, shared_memory() + (f.fault == matrix_beyond ? 512 : 8));
}

__device__ void wrong_copy(const Faulty& f) {
    double* const to = reinterpret_cast<double*>(shared_memory()) + 2 * threadIdx.x;
    double* const from = f.memory + 2 * threadIdx.x;
    const int shift = f.fault == copy_misaligned;
    copy_async(f.fault == copy_beyond ? to + 64 : to, from + shift);
    commit_copies();
    if (f.fault == copy_of_changed_source) *from += 1;
    if (f.fault != copy_not_waited_for) wait_for_copies<0>();
}

__device__ void wrong_access(const Faulty& f) {
    double* const shared = reinterpret_cast<double*>(shared_memory());
    if (f.fault == write_before) shared[-1] = 0;
    if (f.fault == write_behind) shared[64] = 0;
    if (f.fault == write_far_behind) shared[20000] = 0;
    if (f.fault == write_by_all) shared[0] = 0;
    if (f.fault == write_by_blocks) f.memory[threadIdx.x] = 0;
    if (f.fault == write_neighbors) reinterpret_cast<unsigned short*>(f.memory)[threadIdx.x] = 0;
    int table[4] = {};
    if (f.fault == index_beyond) f.memory[threadIdx.x] = table[threadIdx.x + blockDim.x];
    if (f.fault == vector_misaligned) *reinterpret_cast<float4*>(shared + 1) = float4{0, 0, 0, 0};
}

__global__ void faulty(Faulty f) {
    if (f.fault <= grid_barrier_for_some) return wrong_meeting(f);
    if (f.fault >= copy_not_waited_for && f.fault <= copy_beyond) return wrong_copy(f);
    if (f.fault == matrix_misaligned || f.fault == matrix_beyond) return wrong_matrices(f);
    wrong_access(f);
}

}  // namespace

extern "C" {

int run_products(const double* a, const double* b, double* c, int depth, int threads, int repeats) {
    return launch(products, 1, threads, 0, false, nullptr, Products{a, b, c, depth, repeats});
}

int run_integer_products(const int* a, const int* b, std::int64_t* c, int depth) {
    return launch(integer_products, 1, 32, 0, false, nullptr, IntegerProducts{a, b, c, depth});
}

int run_matrices(const unsigned* in, unsigned* out, int missing) {
    return launch(matrices, 1, 32, 512, false, nullptr, Matrices{in, out, static_cast<Missing>(missing)});
}

// Converts integers to digits and back.
void through_digits(const int* in, int* out, int fours) {
    for (int i = 0; i < fours; ++i) {
        int integers[4];
        for (int e = 0; e < 4; ++e) integers[e] = clamped(in[4 * i + e]);
        to_integers(to_digits(integers), integers);
        for (int e = 0; e < 4; ++e) out[4 * i + e] = integers[e];
    }
}

// Converts floats to fixed point and back, with the unit for numbers up to `largest`.
void through_fixed_point(const float* in, double* out, int count, const float* largest) {
    const FloatScale scale(*largest);
    for (int i = 0; i < count; ++i) out[i] = scale(in[i]) * scale.unit();
}

void round_to_ints(const double* in, int* out, int count) {
    for (int i = 0; i < count; ++i) out[i] = round_to_int(in[i]);
}

int run_sum(const double* in, double* out, int blocks, int threads, int missing) {
    const Sum argument = {in, out, nullptr, nullptr, static_cast<Missing>(missing)};
    return launch(sum, blocks, threads, threads * sizeof(double), false, nullptr, argument);
}

int run_warp_sum(const double* in, double* out, int missing) {
    const Sum argument = {in, out, nullptr, nullptr, static_cast<Missing>(missing)};
    return launch(warp_sum, 1, 32, 32 * sizeof(double), false, nullptr, argument);
}

int run_grid_sum(const double* in, double* out, double* partial, unsigned* arrivals, int blocks, int threads,
                 int cooperative, int missing) {
    const Sum argument = {in, out, partial, arrivals, static_cast<Missing>(missing)};
    return launch(grid_sum, blocks, threads, threads * sizeof(double), cooperative, nullptr, argument);
}

int run_swap_pairs(const double* in, double* out, int tiles, int threads, int missing) {
    const Tiles argument = {in, out, tiles, static_cast<Missing>(missing)};
    return launch(swap_pairs, 1, threads, 4 * threads * sizeof(double), false, nullptr, argument);
}

int run_faulty(int fault, double* memory, unsigned* arrivals, int blocks, int threads, int cooperative) {
    const Faulty argument = {static_cast<Fault>(fault), memory, arrivals};
    return launch(faulty, blocks, threads, 64 * sizeof(double), cooperative, nullptr, argument);
}

int run_nothing(int blocks, int threads, size_t shared_bytes, int cooperative) {
    return launch(faulty, blocks, threads, shared_bytes, cooperative, nullptr, Faulty{no_fault, nullptr, nullptr});
}

int allow_shared_memory(int bytes) {
    return cudaFuncSetAttribute(faulty, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

int resident_blocks(int threads, size_t shared_bytes) {
    int blocks = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, faulty, threads, shared_bytes);
    return blocks;
}

int last_error() { return cudaGetLastError(); }

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

void round_all(const float* values, unsigned short* halves, unsigned short* bfloat16s, int count) {
    for (int i = 0; i < count; ++i) {
        halves[i] = round_to_half(values[i]);
        bfloat16s[i] = round_to_bfloat16(values[i]);
    }
}

}  // extern "C"
