// The CPU kernels' interface: tensors as addresses, sizes and strides in elements. It needs neither PyTorch nor Python.
#pragma once

#include <cstdint>
#include <vector>

namespace tgan_fast::cpu {

enum class Type { float32, float64, bfloat16, float16 };
enum class Activation { leaky_relu, relu6, silu, gelu_tanh, hardswish };

// The shape of x [N, C, *]: `groups` blocks [rows, C] if channels-last, or [rows, C, cols] if channels-first.
struct Shape {
    bool channels_last;
    std::int64_t groups;
    std::int64_t rows;
    std::int64_t cols;  // 1 if channels-last
    std::int64_t channels;
};

// A tensor of that shape, with the strides of a row and of a channel; the stride of a column is 1.
struct Operand {
    void* data;
    std::int64_t row;
    std::int64_t channel;
};

// Arguments of both directions of a batch norm. Vectors [channels] are float64 for a float64 tensor, else float32.
struct BatchNorm {
    Shape shape;
    Type type;
    const void* weight;  // may be null
    const void* bias;    // may be null
    double* mean;        // [groups, channels]: forward writes it, backward reads it
    double* rstd;        // [groups, channels]: 1 / √(var + eps), used like mean
    bool training;
    Activation activation;
    double negative_slope;  // of leaky_relu
    Operand x;
    Operand residual;  // null data: none
};

struct BatchNormForward : BatchNorm {
    Operand y;
    void* running_mean;  // may be null in training
    void* running_var;
    std::int64_t* batches;  // counter to which training adds `groups`; may be null
    bool averages_batches;  // whether the momentum is 1 / batches
    double momentum;
    double eps;
};

struct BatchNormBackward : BatchNorm {
    Operand dy;
    Operand dx;         // null data: not wanted
    Operand dresidual;  // wanted if there is a residual
    void* dweight;      // null: not wanted
    void* dbias;
};

// A step of an optimizer on `count` float32 parameters.
struct OptimizerStep {
    std::int64_t count;
    float* parameter;
    const void* gradient;
    Type gradient_type;  // not float64
    float* square_average;
    void* copy;  // null: none
    Type copy_type;
    float eps;
};

struct RMSprop : OptimizerStep {
    float learning_rate;
    float alpha;
    float one_minus_alpha;
};

struct Adam : OptimizerStep {
    float* average;
    float size;  // learning rate / (1 − β₁ᵗ)
    float root;  // √(1 − β₂ᵗ)
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
};

// The kernels as compiled for one instruction set. `threads` is the largest number of threads to use.
struct Kernels {
    void (*batch_norm_forward)(const BatchNormForward& call, int threads);
    void (*batch_norm_backward)(const BatchNormBackward& call, int threads);
    void (*rmsprop)(const RMSprop& step, int threads);
    void (*adam)(const Adam& step, int threads);
};

struct InstructionSet {
    const char* name;
    const Kernels* kernels;
};

// Returns the instruction sets of this CPU, the best first; the last is "baseline".
std::vector<InstructionSet> instruction_sets();

}  // namespace tgan_fast::cpu
