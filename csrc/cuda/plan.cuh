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
// Number of columns of W that one block of the Gram kernel sums over. It is the same on every device, and so is the
// result.
constexpr int kSplitColumns = 2048;

enum class Status : int { untouched, clipped, non_finite };

// The m×m matrices in float64 that the iteration of one W uses; program.cuh describes their contents. kGram is G/t²,
// which lies in the Gram kernel's partial sums.
enum Slot { kA, kX0, kX1, kY, kP, kM, kSlots, kR = kX0, kNone = -1, kGram = -2 };

// One matrix, transposed if necessary so that rows ≤ columns. Offsets count doubles in the workspace.
struct MatrixPlan {
    float* data;
    void* copy;
    std::int64_t columns, row_stride, column_stride;
    std::int64_t partials, slots;
    double threshold_squared;
    CopyType copy_type;
    int rows, padded;
    int splits;         // of the columns, in the Gram kernel
    int split_columns;  // a multiple of 32
    int first_gram_item, first_tile, first_strip;
    bool vectorized;  // rows are contiguous and aligned to 16 bytes
};

struct Plan {
    MatrixPlan matrices[kMatricesPerCall];
    int count;
    int gram_items, tiles, strips;
};

// The workspace begins with this. One double per tile of the iteration follows, then the Gram kernel's partial sums and
// the slots.
struct Control {
    unsigned arrivals;
    Status status[kMatricesPerCall];
};
constexpr int kControlDoubles = 32;
static_assert(sizeof(Control) <= kControlDoubles * sizeof(double));

__host__ __device__ constexpr int blocks_of_side(const MatrixPlan& m) { return m.padded / kBlock; }
// Number of 64×64 blocks in the lower triangle of a Gram matrix.
__host__ __device__ constexpr int lower_blocks(const MatrixPlan& m) {
    return blocks_of_side(m) * (blocks_of_side(m) + 1) / 2;
}
__host__ __device__ constexpr std::int64_t slot_doubles(const MatrixPlan& m) {
    return static_cast<std::int64_t>(m.padded) * m.padded;
}

__device__ inline Control* control(double* workspace) { return reinterpret_cast<Control*>(workspace); }
__device__ inline double* tile_sums(double* workspace) { return workspace + kControlDoubles; }
__device__ inline double* partial(double* workspace, const MatrixPlan& m, int lower_block, int split) {
    return workspace + m.partials + (static_cast<std::int64_t>(lower_block) * m.splits + split) * kBlock * kBlock;
}
__device__ inline double* slot(double* workspace, const MatrixPlan& m, int index) {
    return workspace + m.slots + index * slot_doubles(m);
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
