// Writes every W in fixed point for the Gram kernel, in blocks of 64 rows and 1024 columns with a unit each.
//
// The unit is a power of two and fine enough for a block's largest element to have 30 bits. A block with an element
// above 8·t keeps its float32 values, because the unit would be too coarse beside t; so does one with a non-finite
// element. A W of m×n takes 8·m·n bytes from and to memory.
#pragma once

#include "block.cuh"
#include "fixed_point.cuh"

namespace tgan_fast {

struct QuantizeArguments {
    Plan plan;
    double* workspace;
};

constexpr int kQuantizeThreads = 1024;  // each has one load in flight
constexpr int kQuantizeShared = kQuantizeThreads * sizeof(float);
constexpr double kLargestElement = 8;  // times t

// |value|, or infinity for a NaN.
__device__ __forceinline__ float magnitude(float value) { return isnan(value) ? INFINITY : fabsf(value); }

// Four neighbors in a row; zeros beyond its end.
__device__ __forceinline__ float4 load_four(const MatrixPlan& m, int row, std::int64_t column) {
    float4 four = {0, 0, 0, 0};
    if (column >= m.columns) return four;
    const float* const from = m.data + row * m.row_stride + column * m.column_stride;
    if (m.vectorized && column + 4 <= m.columns) return *reinterpret_cast<const float4*>(from);
    four.x = from[0];
    if (column + 1 < m.columns) four.y = from[m.column_stride];
    if (column + 2 < m.columns) four.z = from[2 * m.column_stride];
    if (column + 3 < m.columns) four.w = from[3 * m.column_stride];
    return four;
}

__global__ void __launch_bounds__(kQuantizeThreads) quantize_kernel(const QuantizeArguments arguments) {
    const Plan& plan = arguments.plan;
    const MatrixPlan& m = plan.matrices[matrix_of(plan, &MatrixPlan::first_block, blockIdx.x)];
    const int index = blockIdx.x - m.first_block;
    const int row_block = index / splits(m), split = index % splits(m);
    const int first_row = row_block * kBlock;
    const std::int64_t first_column = static_cast<std::int64_t>(split) * kSplitColumns;
    const auto for_each_chunk = [&](auto function) {
        const int rows = m.rows - first_row < kBlock ? m.rows - first_row : kBlock;
        for_each_in_memory_order<kQuantizeThreads>(m, rows, columns_of_split(m, split) / 4, [&](int row, int chunk) {
            function(first_row + row, first_column + 4 * chunk);
        });
    };

    // The iteration counts the arrivals at its barriers, from 0.
    if (blockIdx.x == 0 && threadIdx.x == 0) control(arguments.workspace)->arrivals = 0;

    float largest = 0;
    for_each_chunk([&](int row, std::int64_t column) {
        const float4 four = load_four(m, row, column);
        largest = fmaxf(fmaxf(largest, fmaxf(magnitude(four.x), magnitude(four.y))),
                        fmaxf(magnitude(four.z), magnitude(four.w)));
    });
    largest = largest_of_block<kQuantizeThreads>(reinterpret_cast<float*>(shared_memory()), largest);
    const bool fits = !plan.float64_only && largest <= kLargestElement * m.threshold;
    const FloatScale scale(fits ? largest : 0);
    if (threadIdx.x == 0) *unit_of(arguments.workspace, m, row_block, split) = fits ? scale.unit() : 0;

    char* const out = panel(arguments.workspace, m);
    for_each_chunk([&](int row, std::int64_t column) {
        const float4 four = load_four(m, row, column);
        const std::int64_t index = row * padded_columns(m) + column;
        if (!fits) {
            *reinterpret_cast<float4*>(out + index * sizeof(float)) = four;
            return;
        }
        const int integers[4] = {scale(four.x), scale(four.y), scale(four.z), scale(four.w)};
        store_digits(out, index, integers);
    });
}

}  // namespace tgan_fast
