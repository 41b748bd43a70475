// Runs the program of program.cuh for all matrices in one cooperative launch.
//
// The lower triangles are cut into 32×64 tiles, which are distributed over the blocks of the grid in turn. All blocks
// meet at a barrier after each operation. A product of m×m takes m²·(m + 64) FLOP. Operands stay in the L2 cache, of
// which a tile reads 384·m bytes in fixed point, and twice as many in float64, for 4096·m FLOP.
#pragma once

#include "block.cuh"
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
constexpr int kShrinkageThreads = 256;
constexpr int kStages = 3;
constexpr int kStageBytes = (kTileRows + kTileColumns) * kRowBytes;
constexpr int kTilePitch = kTileColumns + 5;
constexpr int kTileElements = kTileRows * kTilePitch;
constexpr int kLargestGroups = 4;
// Shared memory begins with the stages, which the finished tile overwrites. The sums of the threads follow, then the
// states of the matrices.
constexpr int kSumsOffset = kStages * kStageBytes;
constexpr int kStatesOffset = kSumsOffset + kShrinkageThreads * static_cast<int>(sizeof(double));
constexpr int kShrinkageShared = kStatesOffset + kMatricesPerCall * static_cast<int>(sizeof(State));
static_assert(kStages * kStageBytes >= kLargestGroups * kTileElements * static_cast<int>(sizeof(double)));

template <typename Arithmetic>
using ShrinkageWarpTile = WarpTile<Arithmetic, kTileRows, kTileColumns, kShrinkageThreads>;

// Element of a tile in shared memory: of a result in float64 or in fixed point, or the sum of a product of either.
union Element {
    double real;
    std::int64_t integer;
};

// Index of an element of a tile in shared memory. Columns 4·k + e of the same e are neighbors there, because adjacent
// threads read groups of 4 columns; pitch and distance give the lanes of a warp different banks nearly everywhere.
__device__ __forceinline__ int place(int row, int column) {
    return row * kTilePitch + column % 4 * (kTileColumns / 4 + 1) + column / 4;
}

// A tile of one matrix: rows and columns of its first element, and its place among all tiles.
struct Tile {
    int row, column, index;
};

__device__ inline Tile tile_at(const MatrixPlan& m, int index) {
    const int within = index - m.first_tile;
    const BlockPosition block = lower_block_position(within / 2);
    return {block.row * kBlock + within % 2 * kTileRows, block.column * kBlock, index};
}

// Computes a tile of the operation's product in shared memory, as one tile for each group of warps.
template <typename Arithmetic>
__device__ __forceinline__ void multiply_tile(char* shared, const Operation& o, double* workspace, const MatrixPlan& m,
                                              Tile tile) {
    const ShrinkageWarpTile<Arithmetic> warp;
    static_assert(warp.kGroups <= kLargestGroups);
    typename Arithmetic::Sums sums = {};
    const std::int64_t pitch = padded(m) * Arithmetic::kNumberBytes;
    const auto compute = [&](int stage, int) {
        const char* const operands = shared + stage * kStageBytes;
        multiply_stage(sums, warp, operands + warp.row * kRowBytes, operands + (kTileRows + warp.column) * kRowBytes);
    };
    // The columns of the right matrix are its rows, because it is symmetric.
    const auto multiply = [&](const char* left, const char* right) {
        const auto load = [&](int stage, int step) {
            char* const to = shared + stage * kStageBytes;
            const std::int64_t k = step * kRowBytes;
            copy_rows<kTileRows, kShrinkageThreads>(to, left + tile.row * pitch + k, pitch);
            copy_rows<kTileColumns, kShrinkageThreads>(to + kTileRows * kRowBytes, right + tile.column * pitch + k,
                                                       pitch);
        };
        pipeline<kStages>(static_cast<int>(pitch) / kRowBytes, load, compute);
    };
    const char *left = slot(workspace, m, o.left), *right = slot(workspace, m, o.right);
    multiply(left, right);
    if (o.both_orders) {
        __syncthreads();
        multiply(right, left);
    }
    using Value = typename Arithmetic::Value;
    Value* const values = reinterpret_cast<Value*>(shared) + warp.group * kTileElements;
    __syncthreads();
    for_each_element(sums, warp, [&](int row, int column, Value value) { values[place(row, column)] = value; });
    __syncthreads();
}

// Calls function(i, j) for the first elements of this thread's share of the tile's groups of 4 neighbors in a row,
// where a 4×4 square with them is on or below the matrix's diagonal.
template <typename Function>
__device__ __forceinline__ void for_each_four(Tile tile, Function function) {
    for (int index = threadIdx.x; index < kTileRows * kTileColumns / 4; index += kShrinkageThreads) {
        const int i = index / (kTileColumns / 4), j = index % (kTileColumns / 4) * 4;
        if ((tile.row + i) / 4 * 4 >= tile.column + j) function(i, j);
    }
}

// Reads four neighbors in a row of a slot, in units if it is in fixed point.
__device__ __forceinline__ void load_four(double (&values)[4], const char* slot, bool fixed, std::int64_t offset) {
    if (!fixed) {
        const double2* const pairs = reinterpret_cast<const double2*>(slot + offset * sizeof(double));
        const double2 first = load_fresh(pairs), second = load_fresh(pairs + 1);
        values[0] = first.x;
        values[1] = first.y;
        values[2] = second.x;
        values[3] = second.y;
        return;
    }
    const unsigned* const words = reinterpret_cast<const unsigned*>(slot + digits_offset(offset));
    Digits digits;
#pragma unroll
    for (int d = 0; d < 4; ++d) digits.plane[d] = load_fresh(words + d * (kPlaneBytes / 4));
    int integers[4];
    to_integers(digits, integers);
#pragma unroll
    for (int e = 0; e < 4; ++e) values[e] = integers[e];
}

__device__ __forceinline__ void store_four(char* slot, bool fixed, std::int64_t offset, const Element (&values)[4]) {
    if (!fixed) {
        double2* const pairs = reinterpret_cast<double2*>(slot + offset * sizeof(double));
        pairs[0] = {values[0].real, values[1].real};
        pairs[1] = {values[2].real, values[3].real};
        return;
    }
    int integers[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) integers[e] = static_cast<int>(values[e].integer);
    store_digits(slot, offset, integers);
}

// Writes the elements of a finished tile that are on or below the diagonal, and their mirror image, so that the result
// is exactly symmetric.
__device__ __forceinline__ void write_tile(char* out, const Element* values, bool fixed, Tile tile, int padded) {
    Element four[4];
    for_each_four(tile, [&](int i, int j) {
        const int row = tile.row + i, column = tile.column + j;
#pragma unroll
        for (int e = 0; e < 4; ++e)
            four[e] =
                row >= column + e ? values[place(i, j + e)] : values[place(column + e - tile.row, row - tile.column)];
        store_four(out, fixed, static_cast<std::int64_t>(row) * padded + column, four);
    });
    for (int index = threadIdx.x; index < kTileRows * kTileColumns / 4; index += kShrinkageThreads) {
        const int i = index % (kTileRows / 4) * 4, j = index / (kTileRows / 4);
        const int row = tile.row + i, column = tile.column + j;
        if (row < (column / 4 + 1) * 4) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) four[e] = values[place(i + e, j)];
        store_four(out, fixed, static_cast<std::int64_t>(column) * padded + row, four);
    }
}

__device__ __forceinline__ double sum_over_block(double* sums, double value) {
    return reduce_over_block<kShrinkageThreads>(sums, value, [](double a, double b) { return a + b; });
}

// Four neighbors of the tile in G/t²; zeros beyond the matrix.
__device__ __forceinline__ void scaled_gram(double (&values)[4], double* workspace, const MatrixPlan& m, Tile tile,
                                            int i, int j) {
    const int lower_block = (tile.index - m.first_tile) / 2, first_row = tile.row % kBlock;
    const double threshold_squared = m.threshold * m.threshold;
    for (int e = 0; e < 4; ++e) values[e] = 0;
    for (int split = 0; split < splits(m); ++split) {
        const double* const sums = partial(workspace, m, lower_block, split) + (first_row + i) * kBlock + j;
#pragma unroll
        for (int e = 0; e < 4; ++e) values[e] += sums[e];
    }
    for (int e = 0; e < 4; ++e) {
        const bool inside = tile.row + i < m.rows && tile.column + j + e < m.rows;
        values[e] = inside ? values[e] / threshold_squared : 0;
    }
}

// Completes a tile of the operation's result in shared memory, where its product is, and adds this thread's share of
// the measures. Rows and columns beyond the matrix are zero.
__device__ __forceinline__ void complete_tile(Element* values, Measures& measures, const Operation& o,
                                              double* workspace, const MatrixPlan& m, Tile tile) {
    const auto product = [&](int i, int j) {
        const Element* const element = values + place(i, j);
        if (o.fixed_left) return static_cast<double>(element[0].integer + element[kTileElements].integer);
        double sum = 0;
#pragma unroll
        for (int group = 0; group < kLargestGroups; ++group) sum += element[group * kTileElements].real;
        return sum;
    };
    static_assert(ShrinkageWarpTile<FixedPoint>::kGroups == 2 && ShrinkageWarpTile<Float64>::kGroups == kLargestGroups);
    for_each_four(tile, [&](int i, int j) {
        const std::int64_t offset = static_cast<std::int64_t>(tile.row + i) * padded(m) + tile.column + j;
        double left[4] = {}, addend[4] = {};
        if (o.right != kNone) {
#pragma unroll
            for (int e = 0; e < 4; ++e) left[e] = product(i, j + e);
        } else if (o.left == kGram) {
            scaled_gram(left, workspace, m, tile, i, j);
        } else if (o.left != kNone) {
            load_four(left, slot(workspace, m, o.left), o.fixed_left, offset);
        }
        if (o.addend != kNone) load_four(addend, slot(workspace, m, o.addend), o.fixed_addend, offset);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = tile.row + i, column = tile.column + j + e;
            double value = o.product_scale * left[e];
            if (o.addend != kNone) value += o.addend_scale * addend[e];
            if (row == column && row < m.rows) value += o.identity;
            if (o.measured && row >= column) {
                measures.trace += row == column ? value : 0;
                measures.squares += (row == column ? 1 : 2) * value * value;
            }
            if (o.out_unit == 0)
                values[place(i, j + e)].real = value;
            else
                values[place(i, j + e)].integer = clamped(round_to_int(value));
        }
    });
}

// `o` is a copy, because the compiler then knows that stores to shared memory do not change it.
__device__ __forceinline__ void run_tile(char* shared, const Operation o, double* workspace, const MatrixPlan& m,
                                         Tile tile) {
    // Other threads may still be reading the previous tile.
    __syncthreads();
    if (o.right != kNone && o.fixed_left) multiply_tile<FixedPoint>(shared, o, workspace, m, tile);
    if (o.right != kNone && !o.fixed_left) multiply_tile<Float64>(shared, o, workspace, m, tile);
    Element* const values = reinterpret_cast<Element*>(shared);
    Measures measures = {};
    complete_tile(values, measures, o, workspace, m, tile);
    __syncthreads();
    write_tile(slot(workspace, m, o.out), values, o.out_unit != 0, tile, padded(m));
    if (!o.measured) return;
    double* const sums = reinterpret_cast<double*>(shared + kSumsOffset);
    const double trace = sum_over_block(sums, measures.trace), squares = sum_over_block(sums, measures.squares);
    const double unit = o.out_unit == 0 ? 1 : o.out_unit;
    if (threadIdx.x == 0) tile_measures(workspace)[tile.index] = {trace * unit, squares * unit * unit};
}

// Adds up the values of a warp's lanes in their order; lane 0 gets the sum.
__device__ __forceinline__ double sum_over_warp(double* sums, double value) {
    sums[threadIdx.x] = value;
    __syncwarp();
    double sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += sums[threadIdx.x / 32 * 32 + lane];
    __syncwarp();
    return sum;
}

// Advances all matrices to their next operations, one warp per matrix, and returns whether any has one. Every block
// does this by itself, because it depends only on measures that all blocks see. A slow block may still read these
// measures while a fast one runs the next operation, which must therefore not write new ones: step() has no two
// measured operations in a row, and the race check of tests/csrc would find them.
__device__ __forceinline__ bool advance_all(State* states, double* sums, const ShrinkageArguments& arguments) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int matrix = warp; matrix < arguments.plan.count; matrix += kShrinkageThreads / 32) {
        const MatrixPlan& m = arguments.plan.matrices[matrix];
        Measures total = {};
        const bool measured = states[matrix].operation.measured;
        __syncwarp();
        if (measured) {
            Measures sum = {};
            for (int tile = lane; tile < 2 * lower_blocks(m); tile += 32) {
                const double2 measures = load_fresh(tile_measures(arguments.workspace) + m.first_tile + tile);
                sum.trace += measures.x;
                sum.squares += measures.y;
            }
            total.trace = sum_over_warp(sums, sum.trace);
            total.squares = sum_over_warp(sums, sum.squares);
        }
        if (lane == 0) step(states[matrix], m, arguments.schedule, total);
        __syncwarp();
    }
    __syncthreads();
    bool any = false;
    for (int matrix = 0; matrix < arguments.plan.count; ++matrix) any |= !is_done(states[matrix]);
    return any;
}

__device__ __forceinline__ void write_results(const State* states, const ShrinkageArguments& arguments) {
    Control& results = *control(arguments.workspace);
    for (int matrix = 0; matrix < arguments.plan.count; ++matrix) {
        results.status[matrix] = states[matrix].status;
        results.unit_of_shrinkage[matrix] = states[matrix].units[kR];
        if (states[matrix].status == Status::non_finite && arguments.non_finite != nullptr) *arguments.non_finite = 1;
    }
}

__global__ void __launch_bounds__(kShrinkageThreads, 1) shrinkage_kernel(const ShrinkageArguments arguments) {
    char* const shared = shared_memory();
    State* const states = reinterpret_cast<State*>(shared + kStatesOffset);
    const Plan& plan = arguments.plan;
    for (int matrix = threadIdx.x; matrix < plan.count; matrix += kShrinkageThreads) {
        states[matrix] = State{};
        states[matrix].fixed = !plan.float64_only;
    }
    __syncthreads();

    unsigned barriers = 0;
    while (advance_all(states, reinterpret_cast<double*>(shared + kSumsOffset), arguments)) {
        for (int index = blockIdx.x; index < plan.tiles; index += gridDim.x) {
            const int matrix = matrix_of(plan, &MatrixPlan::first_tile, index);
            if (is_done(states[matrix])) continue;
            const MatrixPlan& m = plan.matrices[matrix];
            run_tile(shared, states[matrix].operation, arguments.workspace, m, tile_at(m, index));
        }
        grid_barrier(&control(arguments.workspace)->arrivals, barriers);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) write_results(states, arguments);
}

}  // namespace tgan_fast
