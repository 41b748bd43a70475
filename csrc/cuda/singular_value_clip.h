// Singular value clipping of many matrices at once, each at its own threshold t, on a CUDA device.
//
//     W = U·diag(σ)·Vᵀ   →   W' = U·diag(min(σ, t))·Vᵀ
//
// This needs neither Python nor PyTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tgan_fast {

enum class CopyType : int { none, float16, bfloat16 };

// A float32 matrix in device memory, clipped in place; element (i, j) is data[i·row_stride + j·column_stride].
struct Matrix {
    float* data;
    std::int64_t rows, columns, row_stride, column_stride;
    double threshold;  // t > 0
    // Receives the clipped values, rounded to `copy_type`, at the same offsets.
    void* copy;
    CopyType copy_type;
};

// Scale and running variance of a batch norm in device memory, float32 [channels] each:
// scale ← clamp(scale, lowest·s, s), s = sqrt(running_var + epsilon).
struct BatchNormScale {
    float* scale;
    const float* running_var;
    std::int64_t channels;
};

// One of the odd polynomials a·x + b·x³ + c·x⁵ whose composition is sign(x): it takes |x| in [lower, upper] into the
// next one's interval.
struct SignPolynomial {
    double lower, upper, a, b, c;
};

struct Constraint {
    double lowest, epsilon;                   // of the batch norm scales
    std::vector<SignPolynomial> polynomials;  // at most 32
    double deviation;                         // of their composition from sign(x)
    bool float64_only;                        // no matrix is clipped in fixed point
};

// A device on which the kernels are prepared.
struct Device {
    int multiprocessors;
    int shared_bytes;   // of a block, at most
    int largest_side;   // largest min(rows, columns) that a block has shared memory for, 1024 at most
    std::string error;  // why the kernels cannot run there; empty if they can
};

// Prepares the kernels on a device at the first call for it, and makes it the thread's current device then. Later calls
// return the same, even if the first one failed.
const Device& prepare(int device);

// Returns the dynamic shared memory of each kernel in bytes, for matrices whose smaller side is `side`.
std::vector<std::pair<std::string, int>> shared_bytes(int side);

// Returns the bytes of device memory that `constrain` needs; their address must be a multiple of 256.
std::size_t workspace_bytes(const std::vector<Matrix>& matrices);

// Clips all matrices and clamps all scales, which are on the device, in the order of the stream: with four launches
// for up to 24 matrices, and without synchronization with the host, so that a CUDA graph can capture it. The same input
// gives the same bits. Prepares the kernels if `prepare` has not, and makes the device the thread's current one.
//
// A matrix with a non-finite entry is left unchanged, and 1 is written to *non_finite (device memory, never reset; may
// be null). Returns an error message, or an empty string.
std::string constrain(int device, const std::vector<Matrix>& matrices, const std::vector<BatchNormScale>& scales,
                      const Constraint& constraint, void* workspace, std::size_t workspace_size, int* non_finite,
                      void* stream);

}  // namespace tgan_fast
