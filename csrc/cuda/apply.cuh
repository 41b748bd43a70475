// Computes W' = W − R·W in place, with the rounded copies, and clamps the batch norm scales.
//
// A block holds all rows of a strip of columns in shared memory, so W is read once and written once, and R is streamed
// from the L2 cache. Values are float32, products and sums float64. A W of m×n in strips of 64 columns takes 2·m²·n
// FLOP, moves 8·m·n bytes to and from memory, and reads m²·n/8 bytes of R from the L2 cache.
#pragma once

#include "plan.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct ApplyArguments {
    Plan plan;
    double* workspace;
    BatchNormScale scales[kScalesPerCall];
    float lowest, epsilon;
};

constexpr int kApplyDepth = 16;
constexpr int kApplyStages = 3;
constexpr int kApplyStageDoubles = kBlock * kApplyDepth;

template <int Width>
using ApplyWarpTile = WarpTile<kBlock, Width, 2>;

// Shared memory begins with the stages of R, which the finished tile overwrites; the strip follows.
template <int Width>
constexpr int kApplyFront =
    (kApplyStages * kApplyStageDoubles) > (kBlock * (Width + 1)) ? kApplyStages * kApplyStageDoubles
                                                                 : kBlock * (Width + 1);

template <int Width>
constexpr int apply_shared(int padded) {
    return kApplyFront<Width> * static_cast<int>(sizeof(double)) + padded * Width * static_cast<int>(sizeof(float));
}

// The swizzle grows by 8 columns every second row, so that a warp's loads of 8 columns from 4 such rows use 32 banks.
template <int Width>
__device__ __forceinline__ int strip_index(int row, int column) {
    return row * Width + (column ^ (row / 2 % 4 * 8));
}

// Calls function(row, column) for this thread's share of `rows` rows of the strip; adjacent threads get elements that
// are adjacent in memory.
template <int Width, typename Function>
__device__ __forceinline__ void for_each_of_strip(const MatrixPlan& m, int rows, Function function) {
    const bool down = m.row_stride < m.column_stride;
    for (int index = threadIdx.x; index < rows * Width; index += ApplyWarpTile<Width>::kThreads) {
        if (down)
            function(index % rows, index / rows);
        else
            function(index / Width, index % Width);
    }
}

__device__ __forceinline__ void write_copy(const MatrixPlan& m, std::int64_t offset, float value) {
    if (m.copy_type == CopyType::none) return;
    static_cast<unsigned short*>(m.copy)[offset] =
        m.copy_type == CopyType::float16 ? round_to_half(value) : round_to_bfloat16(value);
}

template <int Width>
__device__ __forceinline__ void load_strip(float* strip, const MatrixPlan& m, std::int64_t first_column) {
    if (m.vectorized) {
        for (int index = threadIdx.x; index < m.padded * (Width / 4); index += ApplyWarpTile<Width>::kThreads) {
            const int row = index / (Width / 4), column = index % (Width / 4) * 4;
            float4 four = {0, 0, 0, 0};
            const float* const from = m.data + row * m.row_stride + first_column + column;
            if (row < m.rows && first_column + column + 4 <= m.columns) {
                four = *reinterpret_cast<const float4*>(from);
            } else if (row < m.rows) {
                float* const values = &four.x;
                for (int e = 0; e < 4 && first_column + column + e < m.columns; ++e) values[e] = from[e];
            }
            *reinterpret_cast<float4*>(strip + strip_index<Width>(row, column)) = four;
        }
        return;
    }
    for_each_of_strip<Width>(m, m.padded, [&](int row, int column) {
        const bool inside = row < m.rows && first_column + column < m.columns;
        strip[strip_index<Width>(row, column)] =
            inside ? m.data[row * m.row_stride + (first_column + column) * m.column_stride] : 0;
    });
}

template <int Width>
__device__ __forceinline__ void load_shrinkage(double* stage, const double* rows, int padded) {
    constexpr int kPairs = kApplyDepth / 2;
#pragma unroll
    for (int i = 0; i < kBlock * kPairs / ApplyWarpTile<Width>::kThreads; ++i) {
        const int index = threadIdx.x + i * ApplyWarpTile<Width>::kThreads;
        const int row = index / kPairs, k = index % kPairs * 2;
        copy_async(stage + row * kApplyDepth + swizzled(row, k), rows + static_cast<std::int64_t>(row) * padded + k);
    }
}

// Computes 64 rows of R·W for the strip in shared memory; `rows` points to these rows of R.
template <int Width>
__device__ __forceinline__ void multiply_strip(double* shared, const float* strip, const double* rows, int padded) {
    const ApplyWarpTile<Width> warp;
    Fragment fragment;
    clear(fragment);
    static_assert(kApplyStages - 1 <= kBlock / kApplyDepth);
    const auto load = [&](int stage, int step) {
        load_shrinkage<Width>(shared + stage * kApplyStageDoubles, rows + step * kApplyDepth, padded);
    };
    const auto compute = [&](int stage, int step) {
        const double* const a = shared + stage * kApplyStageDoubles + warp.row * kApplyDepth;
        const int k = warp.group * 8, row = step * kApplyDepth + k + warp.lane % 4 * 2;
        const auto pair = [&](int j) {
            return double2{strip[strip_index<Width>(row, warp.column + j)],
                           strip[strip_index<Width>(row + 1, warp.column + j)]};
        };
        accumulate<kApplyDepth>(fragment, a, k, pair, warp.lane);
    };
    pipeline<kApplyStages>(padded / kApplyDepth, load, compute);
    add_groups(shared, fragment, warp);
}

template <int Width>
__device__ __forceinline__ void clip_strip(const ApplyArguments& arguments, const MatrixPlan& m,
                                           std::int64_t first_column) {
    double* const shared = shared_memory();
    float* const strip = reinterpret_cast<float*>(shared + kApplyFront<Width>);
    load_strip<Width>(strip, m, first_column);
    for (int first_row = 0; first_row < m.rows; first_row += kBlock) {
        // Other threads may still be reading the previous tile, or loading their part of the strip.
        __syncthreads();
        multiply_strip<Width>(shared, strip,
                              slot(arguments.workspace, m, kR) + static_cast<std::int64_t>(first_row) * m.padded,
                              m.padded);
        for_each_of_strip<Width>(m, kBlock, [&](int row, int column) {
            if (first_row + row >= m.rows || first_column + column >= m.columns) return;
            const float before = strip[strip_index<Width>(first_row + row, column)];
            const float value = static_cast<float>(before - shared[row * (Width + 1) + column]);
            const std::int64_t offset = (first_row + row) * m.row_stride + (first_column + column) * m.column_stride;
            m.data[offset] = value;
            write_copy(m, offset, value);
        });
    }
}

template <int Width>
__device__ __forceinline__ void copy_strip(const MatrixPlan& m, std::int64_t first_column) {
    for_each_of_strip<Width>(m, m.rows, [&](int row, int column) {
        if (first_column + column >= m.columns) return;
        const std::int64_t offset = row * m.row_stride + (first_column + column) * m.column_stride;
        write_copy(m, offset, m.data[offset]);
    });
}

__device__ __forceinline__ void clamp_scale(const BatchNormScale& batch_norm, float lowest, float epsilon) {
    for (std::int64_t channel = threadIdx.x; channel < batch_norm.channels; channel += blockDim.x) {
        const float standard_deviation = sqrtf(batch_norm.running_var[channel] + epsilon);
        const float smallest = lowest * standard_deviation;
        const float scale = batch_norm.scale[channel];
        // A NaN in the scale or the variance must reach the scale, where it is visible.
        const float raised = scale < smallest ? smallest : scale;
        batch_norm.scale[channel] = raised <= standard_deviation || isnan(raised) ? raised : standard_deviation;
    }
}

template <int Width>
__global__ void __launch_bounds__(ApplyWarpTile<Width>::kThreads, 1) apply_kernel(const ApplyArguments arguments) {
    const Plan& plan = arguments.plan;
    const int block = blockIdx.x;
    if (block >= plan.strips)
        return clamp_scale(arguments.scales[block - plan.strips], arguments.lowest, arguments.epsilon);
    const int matrix = matrix_of(plan, &MatrixPlan::first_strip, block);
    const MatrixPlan& m = plan.matrices[matrix];
    const std::int64_t first_column = static_cast<std::int64_t>(block - m.first_strip) * Width;
    if (control(arguments.workspace)->status[matrix] == Status::clipped)
        clip_strip<Width>(arguments, m, first_column);
    else if (m.copy_type != CopyType::none)
        copy_strip<Width>(m, first_column);
}

}  // namespace tgan_fast
