// Runs the program of program.cuh for all matrices in one cooperative launch.
//
// The lower triangles are cut into 32×64 tiles, which are distributed over the blocks of the grid in turn. All blocks
// meet at a barrier after each operation. A product of m×m takes m²·(m + 64) FLOP; operands stay in the L2 cache, of
// which a tile reads 768·m bytes for 4096·m FLOP.
#pragma once

#include "program.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct ShrinkageArguments {
    Plan plan;
    SignSchedule schedule;
    double* workspace;
    int* non_finite;
};

constexpr int kTileRows = 32, kTileColumns = 64;
constexpr int kGroups = 4;
using ShrinkageWarpTile = WarpTile<kTileRows, kTileColumns, kGroups>;
constexpr int kDepth = 32;
constexpr int kStages = 3;
constexpr int kStageDoubles = (kTileRows + kTileColumns) * kDepth;
constexpr int kTilePitch = kTileColumns + 1;
constexpr int kTileDoubles = kTileRows * kTilePitch;
// Shared memory begins with the stages, which the finished tiles overwrite. The sums of the threads follow, then the
// states of the matrices.
constexpr int kSumsOffset = kStages * kStageDoubles;
constexpr int kStatesOffset = kSumsOffset + ShrinkageWarpTile::kThreads;
constexpr int kShrinkageShared = kStatesOffset * sizeof(double) + kMatricesPerCall * sizeof(State);
static_assert(kStages * kStageDoubles >= kGroups * kTileDoubles);

// A tile of one matrix: rows and columns of its first element, and its place among all tiles.
struct Tile {
    int row, column, index;
};

__device__ inline Tile tile_at(const MatrixPlan& m, int index) {
    const int within = index - m.first_tile;
    const BlockPosition block = lower_block_position(within / 2);
    return {block.row * kBlock + within % 2 * kTileRows, block.column * kBlock, index};
}

// A thread's share of copying the operands: two doubles in each of several rows.
class StageLoader {
  public:
    __device__ __forceinline__ StageLoader(const double* left, const double* right, int padded) {
        const int row = threadIdx.x / kPairs, k = threadIdx.x % kPairs * 2;
        const std::int64_t offset = static_cast<std::int64_t>(row) * padded + k;
        left_ = left + offset;
        right_ = right + offset;
        step_ = static_cast<std::int64_t>(kRows) * padded;
        to_ = row * kDepth + swizzled(row, k);
    }

    // Copies the kDepth columns of both operands from column k on.
    __device__ __forceinline__ void operator()(double* stage, int k) const {
#pragma unroll
        for (int i = 0; i < kTileRows / kRows; ++i) copy_async(stage + to_ + i * kRows * kDepth, left_ + k + i * step_);
#pragma unroll
        for (int i = 0; i < kTileColumns / kRows; ++i)
            copy_async(stage + to_ + (kTileRows + i * kRows) * kDepth, right_ + k + i * step_);
    }

  private:
    static constexpr int kPairs = kDepth / 2;
    static constexpr int kRows = ShrinkageWarpTile::kThreads / kPairs;  // at once
    static_assert(kTileRows % kRows == 0 && kTileColumns % kRows == 0 && kRows % 2 == 0);

    const double* left_;
    const double* right_;
    std::int64_t step_;
    int to_;
};

// fragment += this group's share of left·right. `left` points to the tile's first row in the left matrix. `right`
// points to the row of the right matrix that equals the tile's first column, because the matrix is symmetric.
__device__ __forceinline__ void multiply(Fragment& fragment, const ShrinkageWarpTile& warp, double* shared,
                                         const double* left, const double* right, int padded) {
    const StageLoader loader(left, right, padded);
    static_assert(kStages - 1 <= kBlock / kDepth);
    const auto load = [&](int stage, int step) { loader(shared + stage * kStageDoubles, step * kDepth); };
    const auto compute = [&](int stage, int) {
        const double* const a = shared + stage * kStageDoubles + warp.row * kDepth;
        const double* const b = shared + stage * kStageDoubles + (kTileRows + warp.column) * kDepth;
        const int k = warp.group * 8;
        const auto pair = [&](int j) { return load_pair<kDepth>(b, j, k, warp.lane % 4); };
        accumulate<kDepth>(fragment, a, k, pair, warp.lane);
    };
    pipeline<kStages>(padded / kDepth, load, compute);
}

// Calls function(i, j) for this thread's share of a tile's elements on or below the matrix's diagonal.
template <typename Function>
__device__ __forceinline__ void for_each_lower_element(Tile tile, Function function) {
    for (int index = threadIdx.x; index < kTileRows * kTileColumns; index += ShrinkageWarpTile::kThreads) {
        const int i = index / kTileColumns, j = index % kTileColumns;
        if (tile.row + i >= tile.column + j) function(i, j);
    }
}

// Writes the elements of a finished tile that are on or below the diagonal, and their mirror image, so that the result
// is exactly symmetric. Returns this thread's share of the measure.
__device__ __forceinline__ double write_tile(double* out, const double* values, Tile tile, int padded,
                                             Measure measure) {
    double sum = 0;
    for_each_lower_element(tile, [&](int i, int j) {
        const int row = tile.row + i, column = tile.column + j;
        const double value = values[i * kTilePitch + j];
        out[static_cast<std::int64_t>(row) * padded + column] = value;
        if (measure == Measure::trace) sum += row == column ? value : 0;
        if (measure == Measure::squares) sum += (row == column ? 1 : 2) * value * value;
    });
    for (int index = threadIdx.x; index < kTileRows * kTileColumns; index += ShrinkageWarpTile::kThreads) {
        const int i = index % kTileRows, j = index / kTileRows;
        const int row = tile.row + i, column = tile.column + j;
        if (row > column) out[static_cast<std::int64_t>(column) * padded + row] = values[i * kTilePitch + j];
    }
    return sum;
}

// Adds up the values of the block's threads in a fixed order; thread 0 gets the sum.
__device__ __forceinline__ double sum_over_block(double* sums, double value) {
    sums[threadIdx.x] = value;
    for (int half = ShrinkageWarpTile::kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? sums[0] : 0;
}

// Element (i, j) of the tile in G/t².
__device__ __forceinline__ double scaled_gram(const ShrinkageArguments& arguments, const MatrixPlan& m, Tile tile,
                                              int i, int j) {
    const int lower_block = (tile.index - m.first_tile) / 2, first_row = tile.row % kBlock;
    double sum = 0;
    for (int split = 0; split < m.splits; ++split)
        sum += partial(arguments.workspace, m, lower_block, split)[(first_row + i) * kBlock + j];
    return sum / m.threshold_squared;
}

// Computes a tile of left·right in shared memory, as one tile per group of warps that the caller must add up.
__device__ __forceinline__ void multiply_tile(double* shared, const Operation& o, double* workspace,
                                              const MatrixPlan& m, Tile tile) {
    const ShrinkageWarpTile warp;
    Fragment fragment;
    clear(fragment);
    const double *left = slot(workspace, m, o.left), *right = slot(workspace, m, o.right);
    const std::int64_t row = static_cast<std::int64_t>(tile.row) * m.padded;
    const std::int64_t column = static_cast<std::int64_t>(tile.column) * m.padded;
    multiply(fragment, warp, shared, left + row, right + column, m.padded);
    if (o.both_orders) {
        __syncthreads();
        multiply(fragment, warp, shared, right + row, left + column, m.padded);
    }
    store_groups(shared, fragment, warp);
}

// Computes a tile of the operation's result in shared memory. Rows and columns beyond the matrix are zero.
__device__ __forceinline__ void compute_tile(double* values, const Operation& o, const ShrinkageArguments& arguments,
                                             const MatrixPlan& m, Tile tile) {
    double* const workspace = arguments.workspace;
    if (o.right != kNone) multiply_tile(values, o, workspace, m, tile);
    const std::int64_t first = static_cast<std::int64_t>(tile.row) * m.padded + tile.column;
    for_each_lower_element(tile, [&](int i, int j) {
        const std::int64_t offset = first + static_cast<std::int64_t>(i) * m.padded + j;
        double value = 0;
        if (o.right != kNone) {
#pragma unroll
            for (int group = 0; group < kGroups; ++group) value += values[group * kTileDoubles + i * kTilePitch + j];
        } else if (o.left == kGram) {
            value = scaled_gram(arguments, m, tile, i, j);
        } else if (o.left != kNone) {
            value = load_fresh(slot(workspace, m, o.left) + offset);
        }
        value *= o.product_scale;
        if (o.addend != kNone) value += o.addend_scale * load_fresh(slot(workspace, m, o.addend) + offset);
        if (tile.row + i == tile.column + j && tile.row + i < m.rows) value += o.identity;
        values[i * kTilePitch + j] = value;
    });
}

// `o` is a copy, because the compiler then knows that stores to shared memory do not change it.
__device__ __forceinline__ void run_tile(double* shared, const Operation o, const ShrinkageArguments& arguments,
                                         const MatrixPlan& m, Tile tile) {
    // Other threads may still be reading the previous tile.
    __syncthreads();
    compute_tile(shared, o, arguments, m, tile);
    __syncthreads();
    const double sum = write_tile(slot(arguments.workspace, m, o.out), shared, tile, m.padded, o.measure);
    if (o.measure == Measure::nothing) return;
    const double total = sum_over_block(shared + kSumsOffset, sum);
    if (threadIdx.x == 0) tile_sums(arguments.workspace)[tile.index] = total;
}

// Advances all matrices to their next operations, one warp per matrix, and returns whether any has one. Every block
// does this by itself, because it depends only on sums that all blocks see. A slow block may still read these sums
// while a fast one runs the next operation, which must therefore not write new ones: step() has no two measured
// operations in a row, and the race check of tests/csrc would find them.
__device__ __forceinline__ bool advance_all(State* states, double* sums, const ShrinkageArguments& arguments) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int matrix = warp; matrix < arguments.plan.count; matrix += ShrinkageWarpTile::kThreads / 32) {
        const MatrixPlan& m = arguments.plan.matrices[matrix];
        const bool measured = states[matrix].operation.measure != Measure::nothing;
        double sum = 0;
        for (int tile = lane; tile < 2 * lower_blocks(m) && measured; tile += 32)
            sum += load_fresh(tile_sums(arguments.workspace) + m.first_tile + tile);
        sums[threadIdx.x] = sum;
        __syncwarp();
        if (lane == 0) {
            for (int other = 1; other < 32 && measured; ++other) sum += sums[threadIdx.x + other];
            step(states[matrix], m, arguments.schedule, sum);
        }
        __syncwarp();
    }
    __syncthreads();
    bool any = false;
    for (int matrix = 0; matrix < arguments.plan.count; ++matrix) any |= !is_done(states[matrix]);
    return any;
}

__device__ __forceinline__ void write_statuses(const State* states, const ShrinkageArguments& arguments) {
    for (int matrix = 0; matrix < arguments.plan.count; ++matrix) {
        control(arguments.workspace)->status[matrix] = states[matrix].status;
        if (states[matrix].status == Status::non_finite && arguments.non_finite != nullptr) *arguments.non_finite = 1;
    }
}

__global__ void __launch_bounds__(ShrinkageWarpTile::kThreads, 1) shrinkage_kernel(const ShrinkageArguments arguments) {
    double* const shared = shared_memory();
    State* const states = reinterpret_cast<State*>(shared + kStatesOffset);
    const Plan& plan = arguments.plan;
    for (int matrix = threadIdx.x; matrix < plan.count; matrix += ShrinkageWarpTile::kThreads) states[matrix] = State{};
    __syncthreads();

    unsigned barriers = 0;
    while (advance_all(states, shared + kSumsOffset, arguments)) {
        for (int index = blockIdx.x; index < plan.tiles; index += gridDim.x) {
            const int matrix = matrix_of(plan, &MatrixPlan::first_tile, index);
            if (is_done(states[matrix])) continue;
            const MatrixPlan& m = plan.matrices[matrix];
            run_tile(shared, states[matrix].operation, arguments, m, tile_at(m, index));
        }
        grid_barrier(&control(arguments.workspace)->arrivals, barriers);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) write_statuses(states, arguments);
}

}  // namespace tgan_fast
