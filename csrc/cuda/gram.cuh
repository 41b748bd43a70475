// Computes the Gram matrix W·Wᵀ of every W.
//
// A thread block computes a 64×64 block of the lower triangle, summed over kSplitColumns of W's columns; shrinkage.cuh
// adds up the parts. Rows and columns of a block beyond the matrix are undefined. It works in fixed point if both
// blocks of W are, and in float64 otherwise, where products of float32 numbers are exact. A W of m×n takes m·(m + 64)·n
// FLOP, reads m·(m + 64)·n/16 bytes of W through the L2 cache, and writes m·(m + 64)·n/256 bytes.
#pragma once

#include "plan.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct GramArguments {
    Plan plan;
    double* workspace;
};

constexpr int kGramThreads = 256;
constexpr int kGramStages = 3;
constexpr int kGramOperandBytes = kBlock * kRowBytes;
constexpr int kGramShared = kGramStages * 2 * kGramOperandBytes;
static_assert(kGramShared >= kBlock * (kBlock + 1) * static_cast<int>(sizeof(double)));

template <typename Arithmetic>
using GramWarpTile = WarpTile<Arithmetic, kBlock, kBlock, kGramThreads>;

// A block of the Gram matrix and the part of W's columns that it is summed over.
struct GramItem {
    int row, column;  // of the block
    int split;
    double left_unit, right_unit;
};

// Half of the four numbers from 4·four on in a row of an operand.
__device__ __forceinline__ double2 load_half(const char* operand, int row, int four, int half, double unit) {
    if (unit == 0) {
        const float2 pair = reinterpret_cast<const float2*>(operand + chunk_offset(row, four))[half];
        return {pair.x, pair.y};
    }
    Digits digits;
#pragma unroll
    for (int d = 0; d < 4; ++d)
        digits.plane[d] = reinterpret_cast<const unsigned*>(operand + chunk_offset(row, 4 * d + four / 4))[four % 4];
    int integers[4];
    to_integers(digits, integers);
    return half == 0 ? double2{integers[0] * unit, integers[1] * unit}
                     : double2{integers[2] * unit, integers[3] * unit};
}

// Adds a stage's part of the block, in which operands hold fixed-point or float32 numbers.
__device__ __forceinline__ void multiply_stage(Float64::Sums& sums, const GramWarpTile<Float64>& warp, const char* a,
                                               const char* b, const GramItem& item) {
    for (int part = 0; part < warp.kParts; ++part) {
        const int four = 4 * (warp.group * warp.kParts + part) + warp.lane % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const auto left = [&](int row) { return load_half(a, row, four, half, item.left_unit); };
            const auto right = [&](int row) { return load_half(b, row, four, half, item.right_unit); };
            accumulate(sums, left, right, warp.lane);
        }
    }
}

__device__ __forceinline__ void multiply_stage(FixedPoint::Sums& sums, const GramWarpTile<FixedPoint>& warp,
                                               const char* a, const char* b, const GramItem&) {
    multiply_stage(sums, warp, a, b);
}

// Computes a block of the Gram matrix in shared memory. On the diagonal, both operands are the same.
template <typename Arithmetic>
__device__ __forceinline__ void multiply_rows(char* shared, double* workspace, const MatrixPlan& m,
                                              const GramItem& item) {
    const GramWarpTile<Arithmetic> warp;
    typename Arithmetic::Sums sums = {};
    const bool diagonal = item.row == item.column;
    const std::int64_t pitch = padded_columns(m) * sizeof(float), first = std::int64_t{item.split} * kSplitColumns;
    const char* const w = panel(workspace, m) + first * sizeof(float);
    const auto operand = [&](int stage, int which) { return shared + (2 * stage + which) * kGramOperandBytes; };
    const auto load = [&](int stage, int step) {
        const char* const from = w + step * kRowBytes;
        const auto copy_block = [&](int which, int block) {
            copy_rows<kBlock, kGramThreads>(operand(stage, which), from + block * kBlock * pitch, pitch,
                                            m.rows - 1 - block * kBlock);
        };
        copy_block(0, item.row);
        if (!diagonal) copy_block(1, item.column);
    };
    const auto compute = [&](int stage, int) {
        multiply_stage(sums, warp, operand(stage, 0) + warp.row * kRowBytes,
                       operand(stage, !diagonal) + warp.column * kRowBytes, item);
    };
    pipeline<kGramStages>(columns_of_split(m, item.split) * static_cast<int>(sizeof(float)) / kRowBytes, load, compute);
    add_groups(shared, sums, warp);
}

__global__ void __launch_bounds__(kGramThreads, 1) gram_kernel(const GramArguments arguments) {
    double* const workspace = arguments.workspace;
    const MatrixPlan& m = arguments.plan.matrices[matrix_of(arguments.plan, &MatrixPlan::first_gram_item, blockIdx.x)];
    const int index = blockIdx.x - m.first_gram_item;
    // Blocks that run at the same time read the same columns, from the L2 cache.
    const int lower_block = index % lower_blocks(m), split = index / lower_blocks(m);
    const BlockPosition block = lower_block_position(lower_block);
    const GramItem item = {block.row, block.column, split, *unit_of(workspace, m, block.row, split),
                           *unit_of(workspace, m, block.column, split)};

    char* const shared = shared_memory();
    const bool fixed = item.left_unit != 0 && item.right_unit != 0;
    if (fixed)
        multiply_rows<FixedPoint>(shared, workspace, m, item);
    else
        multiply_rows<Float64>(shared, workspace, m, item);

    const double unit = item.left_unit * item.right_unit * kProductUnit;
    double* const out = partial(workspace, m, lower_block, split);
    for (int e = threadIdx.x; e < kBlock * kBlock; e += kGramThreads) {
        const int place = e / kBlock * (kBlock + 1) + e % kBlock;
        out[e] = fixed ? reinterpret_cast<const std::int64_t*>(shared)[place] * unit
                       : reinterpret_cast<const double*>(shared)[place];
    }
}

}  // namespace tgan_fast
