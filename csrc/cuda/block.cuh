// What the threads of a block do together.
#pragma once

#include "plan.cuh"

namespace tgan_fast {

// Combines the values of a block's threads in a fixed order; every thread gets the result.
template <int Threads, typename Value, typename Combine>
__device__ __forceinline__ Value reduce_over_block(Value* shared, Value value, Combine combine) {
    __syncthreads();
    shared[threadIdx.x] = value;
    for (int half = Threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half)
            shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
    return shared[0];
}

template <int Threads>
__device__ __forceinline__ float largest_of_block(float* shared, float value) {
    return reduce_over_block<Threads>(shared, value, [](float a, float b) { return fmaxf(a, b); });
}

// Calls function(row, column) with the position of an element in a part of W, counted from its first row and column.
// Adjacent indices are adjacent in memory.
template <typename Function>
__device__ __forceinline__ void at_position(const MatrixPlan& m, int rows, int columns, int index, Function function) {
    if (m.row_stride < m.column_stride)
        function(index % rows, index / rows);
    else
        function(index / columns, index % columns);
}

// Calls function(row, column) for this thread's share of a part of W.
template <int Threads, typename Function>
__device__ __forceinline__ void for_each_in_memory_order(const MatrixPlan& m, int rows, int columns,
                                                         Function function) {
    for (int index = threadIdx.x; index < rows * columns; index += Threads)
        at_position(m, rows, columns, index, function);
}

}  // namespace tgan_fast
