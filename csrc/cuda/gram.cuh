// Computes the Gram matrix W·Wᵀ of every W in float64. Products of float32 numbers are exact in float64, and rounding
// stays far below the threshold even if a singular value is thousands of times as large.
//
// A thread block computes a 64×64 block of the lower triangle, summed over a part of the columns; shrinkage.cuh adds up
// the parts.
// A W of m×n takes m·(m + 64)·n FLOP, 4·m·n bytes from memory, and up to m/64 times as many through the L2 cache.
#pragma once

#include "plan.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct GramArguments {
    Plan plan;
    double* workspace;
};

using GramWarpTile = WarpTile<kBlock, kBlock, 1>;
constexpr int kGramDepth = 32;
// Number of elements in half of a thread's share of an operand.
constexpr int kGramElements = kBlock * kGramDepth / GramWarpTile::kThreads / 2;
constexpr int kGramOperandDoubles = kBlock * kGramDepth;
constexpr int kGramShared = 4 * kGramOperandDoubles * sizeof(double);
static_assert(kGramDepth == 32, "four parts of depth 8");
static_assert(kGramShared >= kBlock * (kBlock + 1) * static_cast<int>(sizeof(double)));

// The elements of W that a thread loads for one operand: the first one of the next 64×32 part, the distance between
// elements, and the numbers of rows and columns from the first one on.
struct GramOperand {
    const float* next;
    std::int64_t step;
    int rows, columns;
};

// How a thread loads its 16 elements of a part: their row, their column, and their column in shared memory. Contiguous,
// aligned rows are loaded four elements at a time. A product's terms may be added in any order, so the columns are
// stored in an order without bank conflicts.
struct ContiguousRows {
    static constexpr int kRows = GramWarpTile::kThreads / 8;  // at once
    static __device__ __forceinline__ int row(int e) { return threadIdx.x / 8 + e / 4 * kRows; }
    static __device__ __forceinline__ int column(int e) { return threadIdx.x % 8 * 4 + e % 4; }
    static __device__ __forceinline__ int shared_column(int e) { return e % 4 * 8 + threadIdx.x % 8; }
    static __device__ __forceinline__ std::int64_t step(const MatrixPlan& m) { return kRows * m.row_stride; }

    static __device__ __forceinline__ void fetch(float (&values)[kGramElements], const GramOperand& w, int half) {
#pragma unroll
        for (int i = 0; i < kGramElements; i += 4) {
            const int line = (half * kGramElements + i) / 4;
            const float* const from = w.next + line * w.step;
            const int left = line * kRows < w.rows ? w.columns : 0;
            float4 four = {0, 0, 0, 0};
            if (left >= 4) {
                four = *reinterpret_cast<const float4*>(from);
            } else {
                if (left > 0) four.x = from[0];
                if (left > 1) four.y = from[1];
                if (left > 2) four.z = from[2];
            }
            values[i] = four.x;
            values[i + 1] = four.y;
            values[i + 2] = four.z;
            values[i + 3] = four.w;
        }
    }
};

// Any strides. Adjacent threads load adjacent elements along the dimension of the smaller stride, and a thread's
// elements lie along the other one.
template <bool DownColumns>
struct SingleElements {
    static constexpr int kAlong = DownColumns ? kBlock : kGramDepth;
    static constexpr int kStep = GramWarpTile::kThreads / kAlong;
    static __device__ __forceinline__ int along() { return threadIdx.x % kAlong; }
    static __device__ __forceinline__ int across(int e) { return threadIdx.x / kAlong + e * kStep; }
    static __device__ __forceinline__ int row(int e) { return DownColumns ? along() : across(e); }
    static __device__ __forceinline__ int column(int e) { return DownColumns ? across(e) : along(); }
    static __device__ __forceinline__ int shared_column(int e) { return column(e); }
    static __device__ __forceinline__ std::int64_t step(const MatrixPlan& m) {
        return kStep * (DownColumns ? m.column_stride : m.row_stride);
    }

    static __device__ __forceinline__ void fetch(float (&values)[kGramElements], const GramOperand& w, int half) {
        const int along = DownColumns ? w.rows : w.columns, across = DownColumns ? w.columns : w.rows;
        const float* from = w.next + half * kGramElements * w.step;
#pragma unroll
        for (int i = 0; i < kGramElements; ++i, from += w.step)
            values[i] = along > 0 && (half * kGramElements + i) * kStep < across ? *from : 0;
    }
};

template <typename Elements>
__device__ __forceinline__ GramOperand gram_operand(const MatrixPlan& m, int first_row, std::int64_t first_column,
                                                    int columns) {
    const int row = first_row + Elements::row(0), column = Elements::column(0);
    return {m.data + row * m.row_stride + (first_column + column) * m.column_stride, Elements::step(m), m.rows - row,
            columns - column};
}

template <typename Elements>
__device__ __forceinline__ void store_elements(double* operand, const float (&values)[kGramElements], int half) {
#pragma unroll
    for (int i = 0; i < kGramElements; ++i) {
        const int e = half * kGramElements + i;
        const int row = Elements::row(e);
        operand[row * kGramDepth + swizzled(row, Elements::shared_column(e))] = values[i];
    }
}

// A block of the Gram matrix and the part of W's columns that it is summed over.
struct GramItem {
    int row, column;  // of the block
    std::int64_t first_column;
    int columns;
};

// Computes a block of the Gram matrix in shared memory. On the diagonal, both operands are the same.
template <typename Elements>
__device__ __forceinline__ void multiply_rows(double* shared, const MatrixPlan& m, const GramItem& item) {
    const GramWarpTile warp;
    Fragment fragment;
    clear(fragment);
    const bool diagonal = item.row == item.column;
    GramOperand left = gram_operand<Elements>(m, item.row * kBlock, item.first_column, item.columns);
    GramOperand right = gram_operand<Elements>(m, item.column * kBlock, item.first_column, item.columns);
    float values[kGramElements];
    const auto operand = [&](int stage, int which) { return shared + (2 * stage + which) * kGramOperandDoubles; };
    // Parts 0 and 1 are the halves of the left operand, 2 and 3 those of the right one.
    const auto fetch = [&](int p) { Elements::fetch(values, p < 2 ? left : right, p % 2); };
    const auto store = [&](int stage, int p) { store_elements<Elements>(operand(stage, p / 2), values, p % 2); };
    const auto move = [&](GramOperand& w) {
        w.next += kGramDepth * m.column_stride;
        w.columns -= kGramDepth;
    };
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        if (p >= 2 && diagonal) continue;
        fetch(p);
        store(0, p);
    }

    int stage = 0;
    for (int first = 0; first < item.columns; first += kGramDepth, stage ^= 1) {
        __syncthreads();
        move(left);
        move(right);
        const double* const a = operand(stage, 0) + warp.row * kGramDepth;
        const double* const b = operand(stage, !diagonal) + warp.column * kGramDepth;
        const bool more = first + kGramDepth < item.columns;
        // Loads each part of the next operands into registers while a quarter of the current ones is multiplied.
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const bool fetches = more && (p < 2 || !diagonal);
            if (fetches) fetch(p);
            const auto pair = [&](int j) { return load_pair<kGramDepth>(b, j, 8 * p, warp.lane % 4); };
            accumulate<kGramDepth>(fragment, a, 8 * p, pair, warp.lane);
            if (fetches) store(stage ^ 1, p);
        }
    }
    add_groups(shared, fragment, warp);
}

__global__ void __launch_bounds__(GramWarpTile::kThreads, 2) gram_kernel(const GramArguments arguments) {
    const MatrixPlan& m = arguments.plan.matrices[matrix_of(arguments.plan, &MatrixPlan::first_gram_item, blockIdx.x)];
    const int index = blockIdx.x - m.first_gram_item;
    const int lower_block = index / m.splits, split = index % m.splits;
    const BlockPosition block = lower_block_position(lower_block);
    const std::int64_t begin = static_cast<std::int64_t>(split) * m.split_columns;
    const int columns = m.columns - begin < m.split_columns ? static_cast<int>(m.columns - begin) : m.split_columns;
    const GramItem item = {block.row, block.column, begin, columns};

    // The next kernel counts the arrivals at its barriers, from 0.
    if (blockIdx.x == 0 && threadIdx.x == 0) control(arguments.workspace)->arrivals = 0;

    double* const shared = shared_memory();
    if (m.vectorized)
        multiply_rows<ContiguousRows>(shared, m, item);
    else if (m.row_stride < m.column_stride)
        multiply_rows<SingleElements<true>>(shared, m, item);
    else
        multiply_rows<SingleElements<false>>(shared, m, item);

    double* const out = partial(arguments.workspace, m, lower_block, split);
    for (int e = threadIdx.x; e < kBlock * kBlock; e += GramWarpTile::kThreads)
        out[e] = shared[e / kBlock * (kBlock + 1) + e % kBlock];
}

}  // namespace tgan_fast
