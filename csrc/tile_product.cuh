// The matrix product that all three kernels have inside: tiles of a block, made of 32×32 pieces of a warp.
#pragma once

#include "primitives.cuh"

namespace tgan_fast {

// A warp's piece: 2 × 4 products of multiply_add.
struct Piece {
    double c[2][4][4];
};

__device__ __forceinline__ void clear(Piece& piece) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) piece.c[i][j][e] = 0;
}

// Which part of a ROWS×COLUMNS tile this warp computes. Warps beyond the tile's pieces form further groups, which share
// the depth of the product.
template <int Rows, int Columns, int Groups>
struct WarpPart {
    static constexpr int kPiecesAcross = Columns / 32;
    static constexpr int kPieces = Rows / 32 * kPiecesAcross;
    static constexpr int kThreads = 32 * kPieces * Groups;

    int lane = threadIdx.x % 32;
    int group = threadIdx.x / 32 / kPieces;
    int row = threadIdx.x / 32 % kPieces / kPiecesAcross * 32;
    int column = threadIdx.x / 32 % kPieces % kPiecesAcross * 32;
};

// Operands lie in shared memory row by row, in rows of `Depth` doubles, without padding: in odd rows neighbouring groups
// of 8 are exchanged, so that the 8 lanes that load from two rows at once meet 32 different banks.
__device__ __forceinline__ int exchanged(int row, int k) { return k ^ (row % 2 * 8); }

// The elements (row, 2t) and (row, 2t + 1) of an operand's 8 columns from k on, for lane t of 4.
template <int Depth>
__device__ __forceinline__ double2 load_pair(const double* operand, int row, int k, int t) {
    return *reinterpret_cast<const double2*>(operand + row * Depth + exchanged(row, k) + 2 * t);
}

// Calls compute(stage, step) for each step, for whose data load(stage, step) has issued this thread's asynchronous copies
// Stages − 1 steps before. There are at least as many steps.
template <int Stages, typename Load, typename Compute>
__device__ __forceinline__ void pipeline(int steps, Load load, Compute compute) {
    for (int step = 0; step < Stages - 1; ++step) {
        load(step, step);
        commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<Stages - 2>();
        // Everybody's copies have arrived, and the stage that is filled next is no longer read.
        __syncthreads();
        const int ahead = step + Stages - 1;
        if (ahead < steps) load(ahead % Stages, ahead);
        commit_copies();
        compute(step % Stages, step);
    }
}

// piece += A·B for a depth of 8 from k on. `a` is an operand; right(j) is the pair (B[k + 2t][j], B[k + 2t + 1][j]).
// The terms of a product may be added in any order, so each lane takes two that are neighbours in memory.
template <int Depth, typename Right>
__device__ __forceinline__ void accumulate(Piece& piece, const double* a, int k, Right right, int lane) {
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
        for (int i = 0; i < 2; ++i) multiply_add(piece.c[i][j], left[i], b);
    }
}

// Calls function(row, column, value) for this lane's elements of a piece.
template <typename Part, typename Function>
__device__ __forceinline__ void for_each_of_piece(const Piece& piece, const Part& part, Function function) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                function(part.row + 16 * i + part.lane / 4 + e / 2 * 8, part.column + 8 * j + part.lane % 4 * 2 + e % 2,
                         piece.c[i][j][e]);
}

// Adds the groups' pieces up in shared memory, in the order of the groups, and returns with the whole tile there:
// element (i, j) at tile[i·(Columns + 1) + j].
template <int Rows, int Columns, int Groups>
__device__ __forceinline__ void gather(double* tile, const Piece& piece, const WarpPart<Rows, Columns, Groups>& part) {
    for (int group = 0; group < Groups; ++group) {
        __syncthreads();
        if (group != part.group) continue;
        for_each_of_piece(piece, part, [&](int row, int column, double value) {
            double& sum = tile[row * (Columns + 1) + column];
            sum = group == 0 ? value : sum + value;
        });
    }
    __syncthreads();
}

// Faster where there is room for a tile of every group: returns with them one after another, to be added up by who
// reads them.
template <int Rows, int Columns, int Groups>
__device__ __forceinline__ void spread(double* tiles, const Piece& piece, const WarpPart<Rows, Columns, Groups>& part) {
    double* const tile = tiles + part.group * Rows * (Columns + 1);
    __syncthreads();
    for_each_of_piece(piece, part,
                      [&](int row, int column, double value) { tile[row * (Columns + 1) + column] = value; });
    __syncthreads();
}

}  // namespace tgan_fast
