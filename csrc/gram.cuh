// Gram matrix W·Wᵀ of every W, in float64: float32 squares are exact in it, and rounding stays far below the threshold
// even where a singular value is ten thousand times as large.
//
// One block computes a 64×64 block of the lower triangle over a part of the columns; shrinkage.cuh adds the parts up.
// For a W of m×n: m·(m + 64)·n FLOP; 4·m·n bytes from memory, and through the L2 cache up to m/64 times as many.
#pragma once

#include "plan.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct GramArguments {
    Plan plan;
    double* workspace;
};

using GramPart = WarpPart<kBlock, kBlock, 1>;
constexpr int kGramDepth = 32;
// A thread's share of an operand comes in two parts of so many elements.
constexpr int kGramElements = kBlock * kGramDepth / GramPart::kThreads / 2;
constexpr int kGramPitch = kGramDepth + 4;
constexpr int kGramOperandDoubles = kBlock * kGramPitch;
constexpr int kGramShared = 4 * kGramOperandDoubles * sizeof(double);
static_assert(kGramDepth == 32, "four parts of depth 8");
static_assert(kGramShared >= kBlock * (kBlock + 1) * static_cast<int>(sizeof(double)));

// Part of W that one operand takes: 64 rows from `data` on, of which `rows` exist, and `columns` columns.
struct GramOperand {
    const float* data;
    std::int64_t row_stride, column_stride;
    int rows, columns;
};

__device__ __forceinline__ GramOperand gram_operand(const MatrixPlan& m, int first_row, std::int64_t first_column,
                                                    int columns) {
    return {m.data + first_row * m.row_stride + first_column * m.column_stride, m.row_stride, m.column_stride,
            m.rows - first_row, columns};
}

// How a thread's 16 elements of a 64×32 part come to shared memory, by their row, their column, and their column there.
// Rows that are contiguous and aligned: four neighbours at a time. A product's terms may be added in any order, so the
// columns are stored in one that keeps banks apart; so are the rows, of which lanes 0–7 and 8–15 take one and its next
// but one.
struct ContiguousRows {
    static __device__ __forceinline__ int line() { return static_cast<int>(threadIdx.x) / 8; }
    static __device__ __forceinline__ int row(int e) {
        return line() / 4 * 4 + line() % 2 * 2 + line() / 2 % 2 + e / 4 * (GramPart::kThreads / 8);
    }
    static __device__ __forceinline__ int column(int e) { return threadIdx.x % 8 * 4 + e % 4; }
    static __device__ __forceinline__ int shared_column(int e) { return e % 4 * 8 + threadIdx.x % 8; }

    static __device__ __forceinline__ void fetch(float (&values)[kGramElements], const GramOperand& w, int first,
                                                  int half) {
#pragma unroll
        for (int i = 0; i < kGramElements; i += 4) {
            const int e = half * kGramElements + i;
            const float* const from = w.data + row(e) * w.row_stride + first + column(e);
            const int left = row(e) < w.rows ? w.columns - first - column(e) : 0;
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

// Any strides; neighbouring threads take neighbours along the smaller one, and a thread's elements differ in the other.
template <bool DownColumns>
struct SingleElements {
    static constexpr int kAlong = DownColumns ? kBlock : kGramDepth;
    static constexpr int kStep = GramPart::kThreads / kAlong;
    static __device__ __forceinline__ int along() { return threadIdx.x % kAlong; }
    static __device__ __forceinline__ int across(int e) { return threadIdx.x / kAlong + e * kStep; }
    static __device__ __forceinline__ int row(int e) { return DownColumns ? along() : across(e); }
    static __device__ __forceinline__ int column(int e) { return DownColumns ? across(e) : along(); }
    static __device__ __forceinline__ int shared_column(int e) { return column(e); }

    static __device__ __forceinline__ void fetch(float (&values)[kGramElements], const GramOperand& w, int first,
                                                  int half) {
        const int e = half * kGramElements;
        const float* from = w.data + row(e) * w.row_stride + (first + column(e)) * w.column_stride;
        const std::int64_t step = kStep * (DownColumns ? w.column_stride : w.row_stride);
#pragma unroll
        for (int i = 0; i < kGramElements; ++i, from += step)
            values[i] = row(e + i) < w.rows && first + column(e + i) < w.columns ? *from : 0;
    }
};

template <typename Elements>
__device__ __forceinline__ void store_elements(double* operand, const float (&values)[kGramElements], int half) {
#pragma unroll
    for (int i = 0; i < kGramElements; ++i) {
        const int e = half * kGramElements + i;
        operand[Elements::row(e) * kGramPitch + Elements::shared_column(e)] = values[i];
    }
}

// The block of the Gram matrix, in shared memory; on the diagonal the two operands are one.
template <typename Elements>
__device__ __forceinline__ void multiply_rows(double* shared, const GramOperand& left, const GramOperand& right,
                                              bool diagonal) {
    const GramPart part;
    Piece piece;
    clear(piece);
    float values[kGramElements];
    const auto operand = [&](int stage, int which) { return shared + (2 * stage + which) * kGramOperandDoubles; };
    // Part 0 and 1 are the halves of the left operand, 2 and 3 those of the right one.
    const auto fetch = [&](int first, int p) { Elements::fetch(values, p < 2 ? left : right, first, p % 2); };
    const auto store = [&](int stage, int p) { store_elements<Elements>(operand(stage, p / 2), values, p % 2); };
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        if (p >= 2 && diagonal) continue;
        fetch(0, p);
        store(0, p);
    }

    int stage = 0;
    for (int first = 0; first < left.columns; first += kGramDepth, stage ^= 1) {
        __syncthreads();
        const double* const a = operand(stage, 0) + part.row * kGramPitch;
        const double* const b = operand(stage, !diagonal) + part.column * kGramPitch;
        const int next = first + kGramDepth;
        // Each part of the next operands travels to registers while a quarter of these is multiplied.
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const bool fetches = next < left.columns && (p < 2 || !diagonal);
            if (fetches) fetch(next, p);
            const int k = 8 * p;
            accumulate(piece, a + k, kGramPitch, [&](int j, int i) { return b[j * kGramPitch + k + i]; }, part.lane);
            if (fetches) store(stage ^ 1, p);
        }
    }
    gather(shared, piece, part);
}

__global__ void __launch_bounds__(GramPart::kThreads, 3) gram_kernel(const GramArguments arguments) {
    const MatrixPlan& m = arguments.plan.matrices[matrix_of(arguments.plan, &MatrixPlan::first_gram_item, blockIdx.x)];
    const int item = blockIdx.x - m.first_gram_item;
    const int split = item % m.splits;
    const BlockPosition block = lower_block_position(item / m.splits);
    const std::int64_t begin = static_cast<std::int64_t>(split) * m.split_columns;
    const int columns = m.columns - begin < m.split_columns ? static_cast<int>(m.columns - begin) : m.split_columns;

    // The next kernel counts its barriers from here.
    if (blockIdx.x == 0 && threadIdx.x == 0) control(arguments.workspace)->arrivals = 0;

    double* const shared = shared_memory();
    const GramOperand left = gram_operand(m, block.row * kBlock, begin, columns);
    const GramOperand right = gram_operand(m, block.column * kBlock, begin, columns);
    const bool diagonal = block.row == block.column;
    if (m.vectorized)
        multiply_rows<ContiguousRows>(shared, left, right, diagonal);
    else if (m.row_stride < m.column_stride)
        multiply_rows<SingleElements<true>>(shared, left, right, diagonal);
    else
        multiply_rows<SingleElements<false>>(shared, left, right, diagonal);

    double* const out = partial(arguments.workspace, m, item / m.splits, split);
    for (int index = threadIdx.x; index < kBlock * kBlock; index += GramPart::kThreads)
        out[index] = shared[index / kBlock * (kBlock + 1) + index % kBlock];
}

}  // namespace tgan_fast
