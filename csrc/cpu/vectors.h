// Vectors as wide as the registers of the target instruction set, and tiles of several vectors.
//
// Everything here has internal linkage and uses no templates of the standard library, because the linker merges
// functions of one name and could bring AVX-512 instructions to a CPU that lacks them.
#pragma once

#include <cstdint>
#include <cstring>

#include "team.h"

namespace tgan_fast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint64_t LongWords __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

template <typename To, typename From>
INLINE To same_bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// A stored dtype: its compute type, and how a vector is read from and written to memory, which need not be aligned.
template <typename T>
struct Stored;

template <typename T, typename VectorOfT>
struct StoredAsComputed {
    using Value = T;
    using Vector = VectorOfT;
    static INLINE Vector load(const void* from) {
        Vector vector;
        std::memcpy(&vector, from, sizeof vector);
        return vector;
    }
    static INLINE void store(void* to, const Vector& vector) { std::memcpy(to, &vector, sizeof vector); }
};

template <>
struct Stored<float> : StoredAsComputed<float, Floats> {};

template <>
struct Stored<double> : StoredAsComputed<double, Doubles> {};

INLINE Words load_halves(const void* from) {
    HalfWords halves;
    std::memcpy(&halves, from, sizeof halves);
    return __builtin_convertvector(halves, Words);
}

INLINE void store_halves(void* to, const Words& words) {
    const HalfWords halves = __builtin_convertvector(words, HalfWords);
    std::memcpy(to, &halves, sizeof halves);
}

template <>
struct Stored<BFloat16> {
    using Value = float;
    using Vector = Floats;
    static INLINE Vector load(const void* from) { return same_bits<Floats>(load_halves(from) << 16); }
    static INLINE void store(void* to, const Vector& vector) {
        const Words bits = same_bits<Words>(vector);
        // Rounds to nearest, ties to even.
        const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const Words is_nan = same_bits<Words>(vector != vector);
        store_halves(to, (is_nan & 0x7fc0) | (~is_nan & rounded));
    }
};

template <>
struct Stored<Float16> {
    using Value = float;
    using Vector = Floats;
    static INLINE Vector load(const void* from) {
        const Words bits = load_halves(from), magnitude = (bits & 0x7fff) << 13;
        // Adjusts the exponent bias from 15 to 127, which also makes subnormal numbers normal.
        const Words finite = same_bits<Words>(same_bits<Floats>(magnitude) * 0x1p112f);
        const Words is_special = same_bits<Words>(magnitude >= 0x7c00u << 13);
        return same_bits<Floats>(finite | (is_special & 0x7f800000) | (bits & 0x8000) << 16);
    }
    static INLINE void store(void* to, const Vector& vector) {
        const Words bits = same_bits<Words>(vector), magnitude = bits & 0x7fffffff;
        // Rounds to nearest, ties to even; adding 0.5 rounds a number that is subnormal in float16 at its last bit.
        const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        const Words subnormal =
            same_bits<Words>(same_bits<Floats>(magnitude) + 0.5f) - same_bits<Words>(Floats{} + 0.5f);
        const Words is_subnormal = same_bits<Words>(magnitude < 113u << 23);
        const Words is_infinite = same_bits<Words>(magnitude >= 0x477ff000u);
        const Words is_nan = same_bits<Words>(magnitude > 0x7f800000u);
        Words rounded = (is_subnormal & subnormal) | (~is_subnormal & normal);
        rounded = (is_infinite & 0x7c00) | (~is_infinite & rounded);
        store_halves(to, rounded | (is_nan & 0x0200) | (bits & 0x80000000) >> 16);
    }
};

// Constants of exponential(), which multiplies by 2ⁿ⁺ᵘ, a normal number for every n, and by 2⁻ᵘ.
template <typename Value>
struct Exponential;

template <>
struct Exponential<float> {
    using Bits = Words;
    static constexpr int kMantissaBits = 23;
    static constexpr float kLowest = -104;  // its exponential rounds to 0
    // Adding kRound rounds to an integer, and leaves the biased exponent of 2ⁿ⁺ᵘ in the lowest bits.
    static constexpr float kRound = 0x1.8p23f + (127 + 64), kDown = 0x1p-64f;
    static constexpr float kInverseLn2 = 1.44269504f;
    static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;  // n·kLn2High is exact
    // These minimize the largest relative error of 1 + r + r²·Σ cᵢ·rⁱ.
    static constexpr float kCoefficients[] = {0.499999934f, 0.166665206f, 0.0416683881f, 0.00836871692f,
                                              0.00138145972f};
};

template <>
struct Exponential<double> {
    using Bits = LongWords;
    static constexpr int kMantissaBits = 52;
    static constexpr double kLowest = -746;
    static constexpr double kRound = 0x1.8p52 + (1023 + 600), kDown = 0x1p-600;
    static constexpr double kInverseLn2 = 1.4426950408889634;
    static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
    static constexpr double kCoefficients[] = {0.50000000000000106,   0.16666666666666412,   0.04166666666653016,
                                               0.0083333333334944626, 0.001388888894363007,  0.00019841269506576397,
                                               2.4801493098947544e-5, 2.7557586375990774e-6, 2.7630248366114965e-7,
                                               2.5000060913375838e-8};
};

// Returns eᵛ for v ≤ 0, down to the smallest subnormal number; a NaN stays NaN.
//
//     eᵛ = 2ⁿ·eʳ,  n = round(v / ln 2),  r = v − n·ln 2
template <typename Value>
INLINE typename Stored<Value>::Vector exponential(const typename Stored<Value>::Vector& unbounded) {
    using Vector = typename Stored<Value>::Vector;
    using E = Exponential<Value>;
    const Vector v = unbounded < E::kLowest ? Vector{} + E::kLowest : unbounded;
    const Vector shifted = v * E::kInverseLn2 + E::kRound, n = shifted - E::kRound;
    const Vector r = v - n * E::kLn2High - n * E::kLn2Low;
    Vector sum = {};
#pragma GCC unroll 16
    for (int i = sizeof(E::kCoefficients) / sizeof(Value) - 1; i >= 0; --i) sum = sum * r + E::kCoefficients[i];
    const Vector power = same_bits<Vector>(same_bits<typename E::Bits>(shifted) << E::kMantissaBits);
    return (sum * r * r + r + 1) * power * E::kDown;
}

// Several vectors side by side, so that their sums do not wait for each other.
template <typename T>
struct Tile {
    using Value = typename Stored<T>::Value;
    using Vector = typename Stored<T>::Vector;
    static constexpr int kVectors = 4;
    static constexpr int kLanes = sizeof(Vector) / sizeof(Value);
    static constexpr int kWidth = kVectors * kLanes;

    Vector vectors[kVectors];

    // Reads the first `count` elements of a row, or all kWidth if kFull; the others are zero.
    template <bool kFull>
    static INLINE Tile load(const T* from, std::int64_t count) {
        return make([&](int k) {
            const std::int64_t left = count - k * kLanes;
            if (kFull || left >= kLanes) return Stored<T>::load(from + k * kLanes);
            T row[kLanes] = {};
            if (left > 0) std::memcpy(row, from + k * kLanes, left * sizeof(T));
            return Stored<T>::load(row);
        });
    }

    template <bool kFull>
    INLINE void store(T* to, std::int64_t count) const {
        for_each([&](int k) {
            const std::int64_t left = count - k * kLanes;
            if (kFull || left >= kLanes) return Stored<T>::store(to + k * kLanes, vectors[k]);
            T row[kLanes];
            Stored<T>::store(row, vectors[k]);
            if (left > 0) std::memcpy(to + k * kLanes, row, left * sizeof(T));
        });
    }

    // The same for values that are stored in the compute type.
    static INLINE Tile load_values(const Value* from) {
        return make([&](int k) { return Stored<Value>::load(from + k * kLanes); });
    }
    INLINE void store_values(Value* to) const {
        for_each([&](int k) { Stored<Value>::store(to + k * kLanes, vectors[k]); });
    }

    INLINE Tile operator+(const Tile& other) const {
        return make([&](int k) { return vectors[k] + other.vectors[k]; });
    }
    INLINE Tile operator-(const Tile& other) const {
        return make([&](int k) { return vectors[k] - other.vectors[k]; });
    }
    INLINE Tile operator*(const Tile& other) const {
        return make([&](int k) { return vectors[k] * other.vectors[k]; });
    }
    INLINE Tile operator*(Value factor) const {
        return make([&](int k) { return vectors[k] * factor; });
    }

    // Returns the tile of the vectors function(0), function(1), …
    template <typename Function>
    static INLINE Tile make(const Function& function) {
        Tile tile;
        for_each([&](int k) { tile.vectors[k] = function(k); });
        return tile;
    }

  private:
    template <typename Function>
    static INLINE void for_each(const Function& function) {
#pragma GCC unroll 4
        for (int k = 0; k < kVectors; ++k) function(k);
    }
};

}  // namespace
}  // namespace tgan_fast::cpu
