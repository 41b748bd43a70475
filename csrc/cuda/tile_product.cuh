// The matrix product inside all three kernels: a block computes a tile, and each of its warps a 32×32 warp tile in it.
#pragma once

#include "primitives.cuh"

namespace tgan_fast {

// This lane's elements of a warp tile, of 2 × 4 results of multiply_add.
struct Fragment {
    double c[2][4][4];
};

__device__ __forceinline__ void clear(Fragment& fragment) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) fragment.c[i][j][e] = 0;
}

// The warp tile that this warp computes in a Rows×Columns tile. Each of `Groups` groups of warps computes the whole
// tile for a different part of the depth of the product (sliced K).
template <int Rows, int Columns, int Groups>
struct WarpTile {
    static constexpr int kAcross = Columns / 32;
    static constexpr int kWarpTiles = Rows / 32 * kAcross;
    static constexpr int kThreads = 32 * kWarpTiles * Groups;

    int lane = threadIdx.x % 32;
    int group = threadIdx.x / 32 / kWarpTiles;
    int row = threadIdx.x / 32 % kWarpTiles / kAcross * 32;
    int column = threadIdx.x / 32 % kWarpTiles % kAcross * 32;
};

// Operands lie in shared memory row by row, in rows of `Depth` doubles, without padding. In odd rows, neighboring
// groups of 8 are swapped, so that the 8 lanes that load from two rows at once use 32 different banks.
__device__ __forceinline__ int swizzled(int row, int k) { return k ^ (row % 2 * 8); }

// The elements (row, 2t) and (row, 2t + 1) of an operand's 8 columns from k on, for lane t of 4.
template <int Depth>
__device__ __forceinline__ double2 load_pair(const double* operand, int row, int k, int t) {
    return *reinterpret_cast<const double2*>(operand + row * Depth + swizzled(row, k) + 2 * t);
}

// Calls compute(stage, step) for each step, and load(stage, step), which issues this thread's asynchronous copies for
// the step, Stages − 1 steps earlier. There must be at least that many steps.
template <int Stages, typename Load, typename Compute>
__device__ __forceinline__ void pipeline(int steps, Load load, Compute compute) {
    for (int step = 0; step < Stages - 1; ++step) {
        load(step, step);
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

// fragment += A·B for a depth of 8 from k on. `a` is an operand; right(j) is the pair
// (B[k + 2t][j], B[k + 2t + 1][j]).
// The terms of a product may be added in any order, so each lane takes two that are neighbors in memory.
template <int Depth, typename Right>
__device__ __forceinline__ void accumulate(Fragment& fragment, const double* a, int k, Right right, int lane) {
    const int g = lane / 4, t = lane % 4;
    double left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const double2 upper = load_pair<Depth>(a, 16 * i + g, k, t), lower = load_pair<Depth>(a, 16 * i + g + 8, k, t);
        left[i][0] = upper.x;
        left[i][1] = lower.x;
        left[i][2] = upper.y;
        left[i][3] = lower.y;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const double2 pair = right(8 * j + g);
        const double b[2] = {pair.x, pair.y};
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add(fragment.c[i][j], left[i], b);
    }
}

// Calls function(row, column, value) for this lane's elements, at their places in the tile.
template <int Rows, int Columns, int Groups, typename Function>
__device__ __forceinline__ void for_each_element(const Fragment& fragment, const WarpTile<Rows, Columns, Groups>& warp,
                                                 Function function) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                function(warp.row + 16 * i + warp.lane / 4 + e / 2 * 8, warp.column + 8 * j + warp.lane % 4 * 2 + e % 2,
                         fragment.c[i][j][e]);
}

// Adds up the groups' tiles in shared memory, in the order of the groups: element (i, j) at tile[i·(Columns + 1) + j].
template <int Rows, int Columns, int Groups>
__device__ __forceinline__ void add_groups(double* tile, const Fragment& fragment,
                                           const WarpTile<Rows, Columns, Groups>& warp) {
    for (int group = 0; group < Groups; ++group) {
        __syncthreads();
        if (group != warp.group) continue;
        for_each_element(fragment, warp, [&](int row, int column, double value) {
            double& sum = tile[row * (Columns + 1) + column];
            sum = group == 0 ? value : sum + value;
        });
    }
    __syncthreads();
}

// Stores the groups' tiles one after another in shared memory, for the caller to add up. Has fewer barriers than
// add_groups, but needs room for all the tiles.
template <int Rows, int Columns, int Groups>
__device__ __forceinline__ void store_groups(double* tiles, const Fragment& fragment,
                                             const WarpTile<Rows, Columns, Groups>& warp) {
    double* const tile = tiles + warp.group * Rows * (Columns + 1);
    __syncthreads();
    for_each_element(fragment, warp,
                     [&](int row, int column, double value) { tile[row * (Columns + 1) + column] = value; });
    __syncthreads();
}

}  // namespace tgan_fast
