// The matrix product inside the kernels: a block computes a tile, and each of its warps a warp tile in it.
#pragma once

#include "fixed_point.cuh"

namespace tgan_fast {

// The two kinds of arithmetic. A warp tile has kWarpRows rows and 32 columns. Operands are read in chunks of 16 bytes,
// along the depth of the product; one accumulate() takes kChunks of each row.
struct FixedPoint {
    using Value = std::int64_t;
    static constexpr int kNumberBytes = 4, kWarpRows = 16, kChunks = 8;

    // This lane's elements of a warp tile, of 4 results of multiply_add.
    struct Sums {
        int c[4][kWeights][4];
        __device__ __forceinline__ Value value(int, int j, int e) const { return combined(c[j], e); }
    };
};

struct Float64 {
    using Value = double;
    static constexpr int kNumberBytes = 8, kWarpRows = 32, kChunks = 4;

    // Of 2 × 4 results of multiply_add.
    struct Sums {
        double c[2][4][4];
        __device__ __forceinline__ Value value(int i, int j, int e) const { return c[i][j][e]; }
    };
};

// Operands lie in shared memory row by row, in rows of 16 chunks without padding.
constexpr int kChunkBytes = 16, kRowChunks = 16, kRowBytes = kRowChunks * kChunkBytes;

// The warp tile that this warp computes in a Rows×Columns tile. Each of kGroups groups of warps computes the whole tile
// for a different part of a stage's depth (sliced K), in kParts calls of accumulate().
template <typename Arithmetic, int Rows, int Columns, int Threads>
struct WarpTile {
    static constexpr int kAcross = Columns / 32;
    static constexpr int kWarpTiles = Rows / Arithmetic::kWarpRows * kAcross;
    static constexpr int kGroups = Threads / 32 / kWarpTiles;
    static constexpr int kParts = kRowChunks / (kGroups * Arithmetic::kChunks);
    static_assert(kGroups * kWarpTiles * 32 == Threads && kParts * kGroups * Arithmetic::kChunks == kRowChunks);

    int lane = threadIdx.x % 32;
    int group = threadIdx.x / 32 / kWarpTiles;
    int row = threadIdx.x / 32 % kWarpTiles / kAcross * Arithmetic::kWarpRows;
    int column = threadIdx.x / 32 % kWarpTiles % kAcross * 32;
};

// Chunks are exchanged within a row, so that 8 lanes use 32 different banks: those of 8 rows that load the same chunk,
// and those of 2 rows that load 4 neighboring chunks each.
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (row % 2 * 4 + row / 2 % 4)) * kChunkBytes;
}

// Issues this thread's copies of `Rows` rows of 16 chunks from a matrix whose rows are `pitch` bytes apart. Row `last`
// stands for those behind it.
template <int Rows, int Threads>
__device__ __forceinline__ void copy_rows(char* operand, const char* matrix, std::int64_t pitch, int last = Rows - 1) {
    constexpr int kAtOnce = Threads / kRowChunks;
    static_assert(Rows % kAtOnce == 0 && kAtOnce % 8 == 0);
    const int row = threadIdx.x / kRowChunks, chunk = threadIdx.x % kRowChunks;
    char* const to = operand + chunk_offset(row, chunk);
#pragma unroll
    for (int i = 0; i < Rows; i += kAtOnce) {
        const int from = row + i < last ? row + i : last;
        copy_async(to + i * kRowBytes, matrix + from * pitch + chunk * kChunkBytes);
    }
}

// Calls load(stage, step), which issues this thread's asynchronous copies, for each of the steps, and compute(stage,
// step) when they have arrived. Copies are issued Stages − 1 steps ahead.
template <int Stages, typename Load, typename Compute>
__device__ __forceinline__ void pipeline(int steps, Load load, Compute compute) {
    for (int step = 0; step < Stages - 1; ++step) {
        if (step < steps) load(step, step);
        commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<Stages - 2>();
        // Now the copies of all threads have arrived, and no thread reads the stage that is filled next.
        __syncthreads();
        const int ahead = step + Stages - 1;
        if (ahead < steps) load(ahead % Stages, ahead);
        commit_copies();
        compute(step % Stages, step);
    }
}

// sums += A·B for a depth of 32. left(plane, words) and right(j, planes, words) load operands by load_matrices: of the
// warp tile's 16 rows, and two planes of its columns from 8·j on.
template <typename Left, typename Right>
__device__ __forceinline__ void accumulate(FixedPoint::Sums& sums, Left left, Right right) {
    unsigned a[4][4], b[4][2], words[4];
#pragma unroll
    for (int plane = 0; plane < 4; ++plane) left(plane, a[plane]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int planes = 0; planes < 2; ++planes) {
            right(j, planes, words);
#pragma unroll
            for (int e = 0; e < 4; ++e) b[2 * planes + e / 2][e % 2] = words[e];
        }
        multiply_add(sums.c[j], a, b);
    }
}

// sums += A·B for a depth of 8. left(i) is the pair of this lane in row i of A, and right(j) in column j of B. The
// terms of a product may be added in any order, so these are neighbors in memory.
template <typename Left, typename Right>
__device__ __forceinline__ void accumulate(Float64::Sums& sums, Left left, Right right, int lane) {
    const int g = lane / 4;
    double a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const double2 upper = left(16 * i + g), lower = left(16 * i + g + 8);
        a[i][0] = upper.x;
        a[i][1] = lower.x;
        a[i][2] = upper.y;
        a[i][3] = lower.y;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const double2 pair = right(8 * j + g);
        const double b[2] = {pair.x, pair.y};
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add(sums.c[i][j], a[i], b);
    }
}

// Where this lane finds its row of the matrices that accumulate() loads for the 16 rows of A at `rows`: in the chunk of
// a plane that holds 16 of the 32 terms.
template <typename Warp>
__device__ __forceinline__ const char* left_row(const char* rows, const Warp& warp, int part, int plane) {
    return rows + chunk_offset(warp.lane % 16, 4 * plane + 2 * (warp.group * warp.kParts + part) + warp.lane / 16);
}

// Adds a stage's part of a product to the sums; `a` and `b` are the warp tile's rows of A and of Bᵀ.
template <int Rows, int Columns, int Threads>
__device__ __forceinline__ void multiply_stage(FixedPoint::Sums& sums,
                                               const WarpTile<FixedPoint, Rows, Columns, Threads>& warp, const char* a,
                                               const char* b) {
#pragma unroll
    for (int part = 0; part < warp.kParts; ++part) {
        const auto left = [&](int plane, unsigned (&words)[4]) {
            load_matrices(words, left_row(a, warp, part, plane));
        };
        const auto right = [&](int j, int planes, unsigned (&words)[4]) {
            const int chunk = 4 * (2 * planes + warp.lane / 16) + 2 * (warp.group * warp.kParts + part);
            load_matrices(words, b + chunk_offset(8 * j + warp.lane % 8, chunk + warp.lane / 8 % 2));
        };
        accumulate(sums, left, right);
    }
}

template <int Rows, int Columns, int Threads>
__device__ __forceinline__ void multiply_stage(Float64::Sums& sums,
                                               const WarpTile<Float64, Rows, Columns, Threads>& warp, const char* a,
                                               const char* b) {
#pragma unroll
    for (int part = 0; part < warp.kParts; ++part) {
        const int chunk = 4 * (warp.group * warp.kParts + part) + warp.lane % 4;
        const auto pair_in = [&](const char* operand) {
            return [=](int row) { return *reinterpret_cast<const double2*>(operand + chunk_offset(row, chunk)); };
        };
        accumulate(sums, pair_in(a), pair_in(b), warp.lane);
    }
}

// Calls function(row, column, value) for this lane's elements, at their places in the tile.
template <typename Arithmetic, int Rows, int Columns, int Threads, typename Function>
__device__ __forceinline__ void for_each_element(const typename Arithmetic::Sums& sums,
                                                 const WarpTile<Arithmetic, Rows, Columns, Threads>& warp,
                                                 Function function) {
#pragma unroll
    for (int i = 0; i < Arithmetic::kWarpRows / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                function(warp.row + 16 * i + warp.lane / 4 + e / 2 * 8, warp.column + 8 * j + warp.lane % 4 * 2 + e % 2,
                         sums.value(i, j, e));
}

// Adds up the groups' tiles in shared memory, in the order of the groups: element (i, j) at tile[i·(Columns + 1) + j].
template <typename Arithmetic, int Rows, int Columns, int Threads>
__device__ __forceinline__ void add_groups(char* shared, const typename Arithmetic::Sums& sums,
                                           const WarpTile<Arithmetic, Rows, Columns, Threads>& warp) {
    using Value = typename Arithmetic::Value;
    Value* const tile = reinterpret_cast<Value*>(shared);
    for (int group = 0; group < warp.kGroups; ++group) {
        __syncthreads();
        if (group != warp.group) continue;
        for_each_element(sums, warp, [&](int row, int column, Value value) {
            Value& sum = tile[row * (Columns + 1) + column];
            sum = group == 0 ? value : sum + value;
        });
    }
    __syncthreads();
}

}  // namespace tgan_fast
