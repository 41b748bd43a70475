// Computes W' = W − R·W in place, with the rounded copies, and clamps the batch norm scales.
//
// A block holds all rows of a strip of columns in shared memory, and R is streamed from the L2 cache. If R is in fixed
// point, the strip is too, with a power of two as its unit, fine enough for its largest element to have 30 bits; W is
// then read again, from the L2 cache, for the difference. Otherwise the strip is in float32, and products and sums are
// in float64. A W of m×n in strips of 64 columns takes 2·m²·n FLOP, moves 8·m·n bytes to and from memory, and reads
// m²·n/16 bytes of R in fixed point through the L2 cache.
#pragma once

#include <algorithm>

#include "block.cuh"
#include "tile_product.cuh"

namespace tgan_fast {

struct ApplyArguments {
    Plan plan;
    double* workspace;
    BatchNormScale scales[kScalesPerCall];
    float lowest, epsilon;
};

template <int Width>
constexpr int kApplyThreads = 4 * Width;
constexpr int kApplyStages = 2;
constexpr int kApplyStageBytes = kBlock * kRowBytes;

template <typename Arithmetic, int Width>
using ApplyWarpTile = WarpTile<Arithmetic, kBlock, Width, kApplyThreads<Width>>;

// Shared memory begins with the stages of R, which the finished tile overwrites; the strip follows.
template <int Width>
constexpr int kApplyTileBytes = kBlock * (Width + 1) * static_cast<int>(sizeof(double));
template <int Width>
constexpr int kApplyFront = std::max(kApplyStages * kApplyStageBytes, kApplyTileBytes<Width>);

template <int Width>
constexpr int apply_shared(int padded) {
    return kApplyFront<Width> + padded * Width * static_cast<int>(sizeof(float));
}

// Offset in the strip of 4 rows from `row` on in float32, in chunks of one column. In fixed point, the four chunks of
// 16 rows hold a plane each.
template <int Width>
__device__ __forceinline__ int strip_offset(int row, int column) {
    return (row / 4 * Width + column) * kChunkBytes;
}

template <int Width, typename Function>
__device__ __forceinline__ void for_each_of_strip(const MatrixPlan& m, int rows, Function function) {
    for_each_in_memory_order<kApplyThreads<Width>>(m, rows, Width, function);
}

__device__ __forceinline__ void write_copy(const MatrixPlan& m, std::int64_t offset, float value) {
    if (m.copy_type == CopyType::none) return;
    static_cast<unsigned short*>(m.copy)[offset] =
        m.copy_type == CopyType::float16 ? round_to_half(value) : round_to_bfloat16(value);
}

// Loads the strip and, if `fixed`, converts it. Returns its unit.
template <int Width>
__device__ __forceinline__ double load_strip(char* shared, char* strip, const MatrixPlan& m, std::int64_t first_column,
                                             bool fixed) {
    float largest = 0;
    const auto chunk_of = [&](int row, int column) {
        return reinterpret_cast<float4*>(strip + strip_offset<Width>(row, column));
    };
    for_each_of_strip<Width>(m, padded(m) / 16, [&](int sixteen, int column) {
#pragma unroll
        for (int row = 16 * sixteen; row < 16 * sixteen + 16; row += 4) {
            const float* const from = m.data + row * m.row_stride + (first_column + column) * m.column_stride;
            float values[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const bool inside = row + e < m.rows && first_column + column < m.columns;
                values[e] = inside ? from[e * m.row_stride] : 0;
                largest = fmaxf(largest, fabsf(values[e]));
            }
            *chunk_of(row, column) = {values[0], values[1], values[2], values[3]};
        }
    });
    if (!fixed) return 1;
    const FloatScale scale(largest_of_block<kApplyThreads<Width>>(reinterpret_cast<float*>(shared), largest));
    // Every thread converts the chunks that it has loaded.
    for_each_of_strip<Width>(m, padded(m) / 16, [&](int sixteen, int column) {
        unsigned planes[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 four = *chunk_of(16 * sixteen + 4 * i, column);
            const int integers[4] = {scale(four.x), scale(four.y), scale(four.z), scale(four.w)};
            const Digits digits = to_digits(integers);
#pragma unroll
            for (int d = 0; d < 4; ++d) planes[d][i] = digits.plane[d];
        }
#pragma unroll
        for (int d = 0; d < 4; ++d)
            *reinterpret_cast<uint4*>(chunk_of(16 * sixteen + 4 * d, column)) = {planes[d][0], planes[d][1],
                                                                                 planes[d][2], planes[d][3]};
    });
    return scale.unit();
}

// Adds a stage's part of R·W; `a` is the warp tile's rows of R, and `row` the strip's row at the stage's first column.
template <int Width>
__device__ __forceinline__ void multiply_stage(FixedPoint::Sums& sums, const ApplyWarpTile<FixedPoint, Width>& warp,
                                               const char* a, const char* strip, int row) {
#pragma unroll
    for (int part = 0; part < warp.kParts; ++part) {
        const auto left = [&](int plane, unsigned (&words)[4]) {
            load_matrices(words, left_row(a, warp, part, plane));
        };
        const auto right = [&](int j, int planes, unsigned (&words)[4]) {
            const int plane = 2 * planes + warp.lane / 16, k = row + 32 * part + 16 * (warp.lane / 8 % 2);
            load_matrices(words, strip + strip_offset<Width>(k + 4 * plane, warp.column + 8 * j + warp.lane % 8));
        };
        accumulate(sums, left, right);
    }
}

template <int Width>
__device__ __forceinline__ void multiply_stage(Float64::Sums& sums, const ApplyWarpTile<Float64, Width>& warp,
                                               const char* a, const char* strip, int row) {
#pragma unroll
    for (int part = 0; part < warp.kParts; ++part) {
        const int chunk = 4 * (warp.group * warp.kParts + part) + warp.lane % 4, k = row + 2 * chunk;
        const auto left = [&](int i) { return *reinterpret_cast<const double2*>(a + chunk_offset(i, chunk)); };
        const auto right = [&](int j) {
            const char* const four = strip + strip_offset<Width>(k, warp.column + j);
            const float2 pair = reinterpret_cast<const float2*>(four)[k / 2 % 2];
            return double2{pair.x, pair.y};
        };
        accumulate(sums, left, right, warp.lane);
    }
}

// Computes 64 rows of R·W for the strip in shared memory; `rows` points to these rows of R.
template <int Width, typename Arithmetic>
__device__ __forceinline__ void multiply_strip(char* shared, const char* strip, const char* rows, int padded) {
    const ApplyWarpTile<Arithmetic, Width> warp;
    typename Arithmetic::Sums sums = {};
    const std::int64_t pitch = padded * Arithmetic::kNumberBytes;
    const auto load = [&](int stage, int step) {
        copy_rows<kBlock, kApplyThreads<Width>>(shared + stage * kApplyStageBytes, rows + step * kRowBytes, pitch);
    };
    const auto compute = [&](int stage, int step) {
        multiply_stage(sums, warp, shared + stage * kApplyStageBytes + warp.row * kRowBytes, strip,
                       step * (kRowBytes / Arithmetic::kNumberBytes));
    };
    pipeline<kApplyStages>(static_cast<int>(pitch) / kRowBytes, load, compute);
    add_groups(shared, sums, warp);
}

// Subtracts a finished tile of products from W. A thread loads several elements before it writes the first, because
// each load waits for the L2 cache; all of its elements would not fit into registers.
template <int Width, typename Value>
__device__ __forceinline__ void subtract_tile(const MatrixPlan& m, int first_row, std::int64_t first_column,
                                              const Value* products, double unit) {
    constexpr int kElements = kBlock * Width / kApplyThreads<Width>, kAtOnce = 8;
#pragma unroll 1
    for (int first = 0; first < kElements; first += kAtOnce) {
        const auto for_each = [&](auto function) {
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int index = threadIdx.x + (first + i) * kApplyThreads<Width>;
                at_position(m, kBlock, Width, index, [&](int row, int column) {
                    if (first_row + row >= m.rows || first_column + column >= m.columns) return;
                    function(i, (first_row + row) * m.row_stride + (first_column + column) * m.column_stride,
                             row * (Width + 1) + column);
                });
            }
        };
        float values[kAtOnce];
        for_each([&](int i, std::int64_t offset, int) { values[i] = m.data[offset]; });
        for_each([&](int i, std::int64_t offset, int product) {
            const float value = static_cast<float>(values[i] - products[product] * unit);
            m.data[offset] = value;
            write_copy(m, offset, value);
        });
    }
}

template <int Width, typename Arithmetic>
__device__ __forceinline__ void clip_strip(const ApplyArguments& arguments, const MatrixPlan& m,
                                           double unit_of_shrinkage, std::int64_t first_column) {
    char* const shared = shared_memory();
    char* const strip = shared + kApplyFront<Width>;
    const bool fixed = unit_of_shrinkage != 0;
    const double unit_of_strip = load_strip<Width>(shared, strip, m, first_column, fixed);
    const double unit = fixed ? unit_of_shrinkage * unit_of_strip * kProductUnit : 1;
    for (int first_row = 0; first_row < m.rows; first_row += kBlock) {
        // Other threads may still be reading the previous tile, or loading their part of the strip.
        __syncthreads();
        const std::int64_t offset = static_cast<std::int64_t>(first_row) * padded(m) * Arithmetic::kNumberBytes;
        multiply_strip<Width, Arithmetic>(shared, strip, slot(arguments.workspace, m, kR) + offset, padded(m));
        const auto* const products = reinterpret_cast<const typename Arithmetic::Value*>(shared);
        subtract_tile<Width>(m, first_row, first_column, products, unit);
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
__global__ void __launch_bounds__(kApplyThreads<Width>, 1) apply_kernel(const ApplyArguments arguments) {
    const Plan& plan = arguments.plan;
    const int block = blockIdx.x;
    if (block >= plan.strips)
        return clamp_scale(arguments.scales[block - plan.strips], arguments.lowest, arguments.epsilon);
    const int matrix = matrix_of(plan, &MatrixPlan::first_strip, block);
    const MatrixPlan& m = plan.matrices[matrix];
    const std::int64_t first_column = static_cast<std::int64_t>(block - m.first_strip) * Width;
    const Control& results = *control(arguments.workspace);
    const double unit = results.unit_of_shrinkage[matrix];
    if (results.status[matrix] == Status::clipped && unit != 0)
        clip_strip<Width, FixedPoint>(arguments, m, unit, first_column);
    else if (results.status[matrix] == Status::clipped)
        clip_strip<Width, Float64>(arguments, m, unit, first_column);
    else if (m.copy_type != CopyType::none)
        copy_strip<Width>(m, first_column);
}

}  // namespace tgan_fast
