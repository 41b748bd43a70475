// A step of RMSprop and of Adam, in place: each value is read and written once.
//
//     RMSprop   v ← α·v + (1 − α)·g²           p ← p − lr·g / (√v + ε)
//     Adam      m ← β₁·m + (1 − β₁)·g
//               v ← β₂·v + (1 − β₂)·g²         p ← p − size·m / (√v / root + ε)
#pragma once

#include <cmath>

#include "team.h"
#include "vectors.h"

namespace tgan_fast::cpu {
namespace {

using Parameters = Tile<float>;

INLINE Parameters square_root(const Parameters& tile) {
    return Parameters::make([&](int k) {
        Floats root;
        for (int lane = 0; lane < Parameters::kLanes; ++lane) root[lane] = std::sqrt(tile.vectors[k][lane]);
        return root;
    });
}

INLINE Parameters operator/(const Parameters& a, const Parameters& b) {
    return Parameters::make([&](int k) { return a.vectors[k] / b.vectors[k]; });
}

INLINE Parameters operator+(const Parameters& a, float b) {
    return Parameters::make([&](int k) { return a.vectors[k] + b; });
}

// A tile of each tensor of a step: `count` elements from `first` on.
template <bool kFull>
struct Elements {
    std::int64_t first, count;

    template <typename T>
    INLINE Parameters read(const void* tensor) const {
        const auto tile = Tile<T>::template load<kFull>(static_cast<const T*>(tensor) + first, count);
        return Parameters::make([&](int k) { return tile.vectors[k]; });
    }
    INLINE Parameters read(const void* tensor, Type type) const {
        if (type == Type::bfloat16) return read<BFloat16>(tensor);
        if (type == Type::float16) return read<Float16>(tensor);
        return read<float>(tensor);
    }

    template <typename T>
    INLINE void write(void* tensor, const Parameters& values) const {
        const auto tile = Tile<T>::make([&](int k) { return values.vectors[k]; });
        tile.template store<kFull>(static_cast<T*>(tensor) + first, count);
    }
    INLINE void write(void* tensor, Type type, const Parameters& values) const {
        if (type == Type::bfloat16) return write<BFloat16>(tensor, values);
        if (type == Type::float16) return write<Float16>(tensor, values);
        write<float>(tensor, values);
    }
};

// Calls update(elements) for every tile.
template <typename Update>
INLINE void for_elements(const OptimizerStep& step, int threads, const Update& update) {
    constexpr std::int64_t kWidth = Parameters::kWidth;
    const std::int64_t tiles = step.count / kWidth, useful = step.count / kValuesOfThread;
    run_team(static_cast<int>(threads < useful ? threads : useful), [&](const Team& team) {
        for (std::int64_t tile = team.begin(tiles); tile < team.end(tiles); ++tile)
            update(Elements<true>{tile * kWidth, kWidth});
        const std::int64_t rest = step.count % kWidth;
        if (rest > 0 && team.rank == team.size - 1) update(Elements<false>{tiles * kWidth, rest});
    });
}

template <typename AnyElements>
INLINE void finish(const OptimizerStep& step, const AnyElements& at, const Parameters& p, const Parameters& v) {
    at.write(step.square_average, Type::float32, v);
    at.write(step.parameter, Type::float32, p);
    if (step.copy != nullptr) at.write(step.copy, step.copy_type, p);
}

void rmsprop(const RMSprop& step, int threads) {
    for_elements(step, threads, [&](const auto& at) {
        const Parameters g = at.read(step.gradient, step.gradient_type),
                         v = at.read(step.square_average, Type::float32);
        const Parameters new_v = v * step.alpha + g * g * step.one_minus_alpha;
        const Parameters p = at.read(step.parameter, Type::float32);
        finish(step, at, p - g * step.learning_rate / (square_root(new_v) + step.eps), new_v);
    });
}

void adam(const Adam& step, int threads) {
    for_elements(step, threads, [&](const auto& at) {
        const Parameters g = at.read(step.gradient, step.gradient_type),
                         v = at.read(step.square_average, Type::float32);
        const Parameters m = at.read(step.average, Type::float32), p = at.read(step.parameter, Type::float32);
        const Parameters new_m = m * step.beta1 + g * step.one_minus_beta1;
        const Parameters new_v = v * step.beta2 + g * g * step.one_minus_beta2;
        at.write(step.average, Type::float32, new_m);
        // A product saves a division, and its rounding is as small as that of the quotient.
        const Parameters denominator = square_root(new_v) * (1 / step.root) + step.eps;
        finish(step, at, p - new_m * step.size / denominator, new_v);
    });
}

}  // namespace
}  // namespace tgan_fast::cpu
