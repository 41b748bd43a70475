// The activation functions v ↦ y of batch norm and their gradients g = dy·y', for a vector at a time.
//
// A NaN stays NaN; where a result at ±∞ is NaN, PyTorch's function returns NaN as well.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace tgan_fast::cpu {
namespace {

template <typename Value>
struct Relu {
    using Vector = typename Stored<Value>::Vector;

    INLINE Vector value(const Vector& v) const { return v < 0 ? Vector{} : v; }
    INLINE Vector gradient(const Vector& v, const Vector& dy) const { return v > 0 ? dy : Vector{}; }
};

template <typename Value>
struct LeakyRelu {
    using Vector = typename Stored<Value>::Vector;
    Value slope;

    INLINE Vector value(const Vector& v) const { return v > 0 ? v : v * slope; }
    INLINE Vector gradient(const Vector& v, const Vector& dy) const { return v > 0 ? dy : dy * slope; }
};

template <typename Value>
struct Relu6 {
    using Vector = typename Stored<Value>::Vector;

    INLINE Vector value(const Vector& v) const { return v < 0 ? Vector{} : v > 6 ? Vector{} + 6 : v; }
    INLINE Vector gradient(const Vector& v, const Vector& dy) const {
        return v > 0 ? (v < 6 ? dy : Vector{}) : Vector{};
    }
};

// y = v·min(max(v + 3, 0), 6) / 6
template <typename Value>
struct Hardswish {
    using Vector = typename Stored<Value>::Vector;

    INLINE Vector value(const Vector& v) const {
        const Vector shifted = v + 3, gate = shifted < 0 ? Vector{} : shifted > 6 ? Vector{} + 6 : shifted;
        return v * (gate * (Value(1) / 6));
    }
    INLINE Vector gradient(const Vector& v, const Vector& dy) const {
        return v <= -3 ? Vector{} : v >= 3 ? dy : dy * (v * (Value(1) / 3) + Value(0.5));
    }
};

// y = v·σ(w), where w = v for SiLU, and w = 2·√(2/π)·(v + 0.044715·v³) for the approximation of GELU by tanh.
template <typename Value, bool kGelu>
struct Gated {
    using Vector = typename Stored<Value>::Vector;

    INLINE Vector value(const Vector& v) const {
        const Gate gate(v);
        return v * gate.sigmoid;
    }
    INLINE Vector gradient(const Vector& v, const Vector& dy) const {
        const Gate gate(v);
        // In this order, 0 · ∞ does not occur.
        return dy * (gate.sigmoid + v * gate.sigmoid_slope * gate.slope);
    }

  private:
    struct Gate {
        Vector slope = Vector{} + 1;    // dw/dv
        Vector sigmoid, sigmoid_slope;  // σ(w) and σ'(w)

        INLINE explicit Gate(const Vector& v) {
            Vector w = v;
            if constexpr (kGelu) {
                constexpr Value kLinear = 1.5957691216057308, kCubic = 0.044715 * kLinear;
                // σ' is 0 far from 0, but the square of a large number is ∞.
                const Vector square = v * v, bounded = square < 10000 ? square : Vector{} + 10000;
                w = v * (bounded * kCubic + kLinear);
                slope = bounded * (3 * kCubic) + kLinear;
            }
            const Vector e = exponential<Value>(w < 0 ? w : -w), of_magnitude = 1 / (e + 1);
            sigmoid = w < 0 ? e * of_magnitude : of_magnitude;
            sigmoid_slope = e * of_magnitude * of_magnitude;
        }
    };
};

template <typename Value>
using Silu = Gated<Value, false>;
template <typename Value>
using GeluTanh = Gated<Value, true>;

// Calls function(the call's activation).
template <typename Value, typename Function>
INLINE void with_activation(const BatchNorm& call, const Function& function) {
    switch (call.activation) {
        case Activation::leaky_relu:
            if (call.negative_slope == 0) return function(Relu<Value>());
            return function(LeakyRelu<Value>{static_cast<Value>(call.negative_slope)});
        case Activation::relu6:
            return function(Relu6<Value>());
        case Activation::silu:
            return function(Silu<Value>());
        case Activation::gelu_tanh:
            return function(GeluTanh<Value>());
        case Activation::hardswish:
            return function(Hardswish<Value>());
    }
}

}  // namespace
}  // namespace tgan_fast::cpu
