// Divides the work of a call into blocks, and lays out the workspace.
#pragma once

#include <cstdint>

#include "primitives.cuh"
#include "singular_value_clip.h"

namespace tgan_fast {

// Arguments are passed by value, and a kernel takes at most 4 KB of them.
constexpr int kMatricesPerCall = 24;
constexpr int kScalesPerCall = 24;
constexpr int kPolynomials = 32;

// Gram matrices, and the matrices computed from them, are padded with zeros to multiples of this.
constexpr int kBlock = 64;
// Number of columns of W that share a unit in a block of 64 rows, and that one block of the Gram kernel sums over. It
// is the same on every device, and so is the result.
constexpr int kSplitColumns = 1024;

enum class Status : int { untouched, clipped, non_finite };

// The m×m matrices that the iteration of one W uses; program.cuh describes their contents. Each has room for float64.
// kGram is G/t², which lies in the Gram kernel's partial sums.
enum Slot { kA, kS, kX0, kX1, kY, kP, kM, kSlots, kR = kX0, kNone = -1, kGram = -2 };

// One matrix, transposed if necessary so that rows ≤ columns.
struct MatrixPlan {
    float* data;
    void* copy;
    std::int64_t columns, row_stride, column_stride;
    std::int64_t workspace;  // offset in doubles
    double threshold;
    CopyType copy_type;
    int rows;
    int first_block, first_gram_item, first_tile, first_strip;
    bool vectorized;  // rows are contiguous and aligned to 16 bytes
};

struct Plan {
    MatrixPlan matrices[kMatricesPerCall];
    int count;
    int blocks, gram_items, tiles, strips;
    bool float64_only;
};

// The workspace begins with this. The measures of the iteration's tiles follow, then each matrix's part.
struct Control {
    unsigned arrivals;
    Status status[kMatricesPerCall];
    double unit_of_shrinkage[kMatricesPerCall];  // of R; 0 if it is in float64
};
constexpr int kControlDoubles = 64;
static_assert(sizeof(Control) <= kControlDoubles * sizeof(double));

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t by) {
    return (value + by - 1) / by;
}
__host__ __device__ constexpr std::int64_t rounded_up(std::int64_t value, int multiple) {
    return ceil_div(value, multiple) * multiple;
}
__host__ __device__ constexpr int padded(const MatrixPlan& m) { return static_cast<int>(rounded_up(m.rows, kBlock)); }
__host__ __device__ constexpr std::int64_t padded_columns(const MatrixPlan& m) { return rounded_up(m.columns, kBlock); }
__host__ __device__ constexpr int splits(const MatrixPlan& m) {
    return static_cast<int>(ceil_div(m.columns, kSplitColumns));
}
// Number of columns in a part, padded.
__host__ __device__ constexpr int columns_of_split(const MatrixPlan& m, int split) {
    const std::int64_t left = padded_columns(m) - std::int64_t{split} * kSplitColumns;
    return static_cast<int>(left < kSplitColumns ? left : kSplitColumns);
}
__host__ __device__ constexpr int blocks_of_side(const MatrixPlan& m) { return padded(m) / kBlock; }
// Number of 64×64 blocks in the lower triangle of a Gram matrix.
__host__ __device__ constexpr int lower_blocks(const MatrixPlan& m) {
    return blocks_of_side(m) * (blocks_of_side(m) + 1) / 2;
}

// The parts of a matrix's workspace, one after the other, in doubles.
__host__ __device__ constexpr std::int64_t unit_doubles(const MatrixPlan& m) {
    return rounded_up(static_cast<std::int64_t>(blocks_of_side(m)) * splits(m), 32);
}
__host__ __device__ constexpr std::int64_t panel_doubles(const MatrixPlan& m) {
    return rounded_up(m.rows * padded_columns(m) / 2, 32);
}
__host__ __device__ constexpr std::int64_t partial_doubles(const MatrixPlan& m) {
    return static_cast<std::int64_t>(lower_blocks(m)) * splits(m) * kBlock * kBlock;
}
__host__ __device__ constexpr std::int64_t slot_doubles(const MatrixPlan& m) {
    return static_cast<std::int64_t>(padded(m)) * padded(m);
}
__host__ __device__ constexpr std::int64_t workspace_doubles(const MatrixPlan& m) {
    return unit_doubles(m) + panel_doubles(m) + partial_doubles(m) + kSlots * slot_doubles(m);
}

__device__ inline Control* control(double* workspace) { return reinterpret_cast<Control*>(workspace); }
// The sum over a tile's part of the diagonal, and over the squares of its elements.
__device__ inline double2* tile_measures(double* workspace) {
    return reinterpret_cast<double2*>(workspace + kControlDoubles);
}
// The unit of a block of W of 64 rows and kSplitColumns columns; 0 if the panel holds its float32 values.
__device__ inline double* unit_of(double* workspace, const MatrixPlan& m, int row_block, int split) {
    return workspace + m.workspace + row_block * splits(m) + split;
}
// W in fixed point or in float32, with columns padded with zeros.
__device__ inline char* panel(double* workspace, const MatrixPlan& m) {
    return reinterpret_cast<char*>(workspace + m.workspace + unit_doubles(m));
}
__device__ inline double* partial(double* workspace, const MatrixPlan& m, int lower_block, int split) {
    return workspace + m.workspace + unit_doubles(m) + panel_doubles(m) +
           (static_cast<std::int64_t>(lower_block) * splits(m) + split) * kBlock * kBlock;
}
// A matrix in float64 or in fixed point.
__device__ inline char* slot(double* workspace, const MatrixPlan& m, int index) {
    return reinterpret_cast<char*>(workspace + m.workspace + unit_doubles(m) + panel_doubles(m) + partial_doubles(m) +
                                   index * slot_doubles(m));
}

// Returns the matrix to which item `index` belongs, in a list with the items of one matrix after the other.
__device__ inline int matrix_of(const Plan& plan, int MatrixPlan::* first, int index) {
    int matrix = 0;
    while (matrix + 1 < plan.count && index >= plan.matrices[matrix + 1].*first) ++matrix;
    return matrix;
}

struct BlockPosition {
    int row, column;
};

// Row and column of block `index` in a lower triangle whose blocks are numbered row by row.
__device__ inline BlockPosition lower_block_position(int index) {
    int row = 0;
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    return {row, index - row * (row + 1) / 2};
}

}  // namespace tgan_fast
