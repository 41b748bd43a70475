// Fixed-point numbers: a 32-bit integer times the unit of its matrix, for products on the int8 tensor cores.
//
// An integer is the sum of four signed 8-bit digits (Ozaki's scheme), so the product of two integers is a sum of 16
// products of digits. The 13 of the highest weights are computed. The others matter less than rounding of the result,
// unless they have the same sign in all terms of a sum, as for a W with equal rows (docs/kernels.md).
// Sums of digits' products are exact in int32 for up to 2¹⁵ terms, so the order of additions does not matter.
#pragma once

#include <cstdint>

#include "primitives.cuh"

namespace tgan_fast {

// Largest magnitude of a fixed-point number in units. Larger integers, up to 0x7f7f7f7f, have digits too.
constexpr double kLargestInteger = 0x7f000000;
constexpr int kLargestWithDigits = 0x7f7f7f7f;
// Value of the lowest weight, in the product of two units.
constexpr double kProductUnit = 1 << 8 * kLowestWeight;

// One digit of four neighbors in each word: byte k of plane[d] is digit d of number k.
struct Digits {
    unsigned plane[4];
};

// A matrix in fixed point is stored in groups of 64 neighbors in a row. A group has 64 bytes for each plane.
constexpr int kGroupNumbers = 64, kPlaneBytes = 64;

// Offset in bytes of four neighbors in plane 0; `index` counts numbers, and rows begin at multiples of a group.
__device__ __forceinline__ std::int64_t digits_offset(std::int64_t index) {
    return index / kGroupNumbers * (4 * kPlaneBytes) + index % kGroupNumbers;
}

// Swaps bytes between words: byte k of word d ↔ byte d of word k.
__device__ __forceinline__ Digits transposed(const unsigned (&w)[4]) {
    const unsigned low01 = permute_bytes(w[0], w[1], 0x5140), low23 = permute_bytes(w[2], w[3], 0x5140);
    const unsigned high01 = permute_bytes(w[0], w[1], 0x7362), high23 = permute_bytes(w[2], w[3], 0x7362);
    return {{permute_bytes(low01, low23, 0x5410), permute_bytes(low01, low23, 0x7632),
             permute_bytes(high01, high23, 0x5410), permute_bytes(high01, high23, 0x7632)}};
}

// Adding 128 to the lower three digits makes them the unsigned bytes of a word, and flipping their highest bits makes
// these bytes two's complement again.
constexpr unsigned kOffsets = 0x00808080;

__device__ __forceinline__ Digits to_digits(const int (&integers)[4]) {
    unsigned words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k] = (static_cast<unsigned>(integers[k]) + kOffsets) ^ kOffsets;
    return transposed(words);
}

__device__ __forceinline__ void to_integers(const Digits& digits, int (&integers)[4]) {
    const Digits words = transposed(digits.plane);
#pragma unroll
    for (int k = 0; k < 4; ++k) integers[k] = static_cast<int>((words.plane[k] ^ kOffsets) - kOffsets);
}

__device__ __forceinline__ void store_digits(char* matrix, std::int64_t index, const int (&integers)[4]) {
    const Digits digits = to_digits(integers);
    unsigned* const words = reinterpret_cast<unsigned*>(matrix + digits_offset(index));
#pragma unroll
    for (int d = 0; d < 4; ++d) words[d * (kPlaneBytes / 4)] = digits.plane[d];
}

__device__ __forceinline__ int clamped(int integer) {
    if (integer > kLargestWithDigits) return kLargestWithDigits;
    return integer < -kLargestWithDigits ? -kLargestWithDigits : integer;
}

// Returns the sum of the digits' products, in kProductUnit of the product of the units.
__device__ __forceinline__ std::int64_t combined(const int (&sums)[kWeights][4], int element) {
    std::int64_t sum = 0;
#pragma unroll
    for (int w = kWeights - 1; w >= 0; --w) sum = sum * 256 + sums[w][element];
    return sum;
}

// A power of two that makes fixed-point numbers of floats up to a given magnitude, as exactly as float32 allows.
class FloatScale {
  public:
    // `largest` must be finite; rounding to an int gives at most 2³⁰.
    __device__ explicit FloatScale(float largest) {
        int exponent = 0;
        frexpf(largest, &exponent);
        const int shift = 30 - exponent;
        // One factor alone could exceed the range of float32.
        first_ = ldexpf(1.0f, shift / 2);
        second_ = ldexpf(1.0f, shift - shift / 2);
        unit_ = ldexp(1.0, -shift);
    }
    __device__ double unit() const { return unit_; }
    __device__ int operator()(float value) const { return round_to_int(value * first_ * second_); }

  private:
    float first_, second_;
    double unit_;
};

}  // namespace tgan_fast
