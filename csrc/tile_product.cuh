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

// piece += A·B for a depth of 8, where A[i][k] = a[i·pitch + k] and B[k][j] = b(j, k). With pitch % 16 = 4 a warp's
// loads of A meet no bank conflict.
template <typename B>
__device__ __forceinline__ void accumulate(Piece& piece, const double* a, int pitch, B b, int lane) {
    const int g = lane / 4, t = lane % 4;
    double left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) left[i][e] = a[(16 * i + g + e % 2 * 8) * pitch + t + e / 2 * 4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const double right[2] = {b(8 * j + g, t), b(8 * j + g, t + 4)};
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add(piece.c[i][j], left[i], right);
    }
}

// Adds the groups' pieces up in shared memory, in the order of the groups, and returns with the whole tile there:
// element (i, j) at tile[i·(Columns + 1) + j].
template <int Rows, int Columns, int Groups>
__device__ __forceinline__ void gather(double* tile, const Piece& piece, const WarpPart<Rows, Columns, Groups>& part) {
    for (int group = 0; group < Groups; ++group) {
        __syncthreads();
        if (group != part.group) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = part.row + 16 * i + part.lane / 4 + e / 2 * 8;
                    const int column = part.column + 8 * j + part.lane % 4 * 2 + e % 2;
                    double& sum = tile[row * (Columns + 1) + column];
                    sum = group == 0 ? piece.c[i][j][e] : sum + piece.c[i][j][e];
                }
    }
    __syncthreads();
}

}  // namespace tgan_fast
