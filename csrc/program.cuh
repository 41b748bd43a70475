// From the Gram matrix G = W·Wᵀ to the matrix R of W' = W − R·W, as a program of matrix products.
//
//     A = G/t² − I                        eigenvalues σ²/t² − 1
//     X = sign(A)                         odd polynomials composed, the first ones left out where ‖A‖ allows
//     B = A/2 + (A·X + X·A)/4 = max(A, 0) both orders, since rounding leaves A·X less symmetric the larger ‖A‖ is
//     M = (I + B)^(-1/2)                  the same polynomials: with y = x² and p(x) = x·f(y), y ← y·f(y)² tends to 1,
//                                         so the product of all f(y) to y^(-1/2)
//     R = I − M
//
// |·| is continuous at 0, and the spectrum of I + B begins at 1, so clusters at the threshold and rank deficiency do no
// harm. Every matrix of a call has a State of its own and takes one Operation at a time; how many there are follows
// from its norms, on the device.
#pragma once

#include "plan.cuh"

namespace tgan_fast {

// A σ² between t² and (1 + this)·t² is not lowered all the way: up to a sixteenth of this, 4e-7·t, stays in σ.
constexpr double kResolution = 6e-6;
// Where ‖W‖² exceeds this times t², rounding of the largest eigenvalues would blur what lies near t: such a W is clipped
// at the larger threshold ‖W‖/3162, and further by the next call.
constexpr double kLargestTrace = 1e7;

struct Polynomials {
    SignPolynomial steps[kPolynomials];
    int count;
    double deviation;
};

enum class Stage : int {
    reduce,  // A, out of the Gram kernel's partial sums
    rescale,
    vector,
    square,
    fourth,
    sign_first_factor,
    sign_first,
    sign_square,
    sign_factor,
    sign_apply,
    excess,
    root_first_factor,
    root_first_half,
    root_first_y,
    root_factor,
    root_product,
    root_half,
    root_y,
    done,
};

// What is added up over the elements of an operation's result.
enum class Measure : int { nothing, trace, squares };

// out = identity·I + addend_scale·addend + product_scale·left·right, of symmetric matrices that commute; with
// `both_orders`, left·right + right·left. Without a `right` it is left alone; without a `left` nothing.
struct Operation {
    Slot left, right, addend, out;
    double product_scale, addend_scale, identity;
    bool both_orders = false;
};

struct State {
    Stage stage;
    Status status;
    int step;                             // the polynomial that comes next
    double trace;                         // of G/t²
    double norm;                          // bound of ‖A‖
    double scale;                         // κ of y = κ·(I + B)
    Slot x, y, product;                   // the iteration's matrices
};

__device__ inline State initial_state() {
    return {Stage::reduce, Status::untouched, 0, 0, 0, 0, kX0, kX1, kP};
}

__device__ inline Slot other_x(const State& s) { return s.x == kX0 ? kX1 : kX0; }
__device__ inline Slot next_product(const State& s) { return s.product == kP ? kM : kP; }
__device__ inline bool is_last(const State& s, const Polynomials& p) { return s.step + 1 == p.count; }
__device__ inline Operation product(Slot left, Slot right, Slot out) {
    return {left, right, kNone, out, 1, 0, 0};
}
// f(y) = a + b·y + c·y² of polynomial `step`.
__device__ inline Operation factor(const SignPolynomial& p, Slot y, Slot out) {
    return {y, y, y, out, p.c, p.b, p.a};
}
// The last product of the iteration is R = I − √κ·(what it would be).
__device__ inline Operation shrinkage(Operation o, double scale) {
    const double root = sqrt(scale);
    return {o.left, o.right, o.addend, kR, -root * o.product_scale, -root * o.addend_scale, 1 - root * o.identity};
}

__device__ inline Operation operation(const State& s, const Polynomials& polynomials) {
    const SignPolynomial& p = polynomials.steps[s.step];
    switch (s.stage) {
        case Stage::rescale: {
            const double r = kLargestTrace / s.trace;
            return {kA, kNone, kNone, kA, r, 0, r - 1};
        }
        case Stage::vector:
            return {kNone, kNone, kNone, kR, 0, 0, 1 - 1 / sqrt(s.trace)};
        case Stage::square:
            return product(kA, kA, kY);
        case Stage::fourth:
            return product(kY, kY, kP);
        case Stage::sign_first_factor: {
            // The polynomial of x = A·upper/norm, by A⁴ and A², which are there.
            const double u = p.upper / s.norm;
            return {kP, kNone, kY, kP, p.c * u * u * u * u * u, p.b * u * u * u, p.a * u};
        }
        case Stage::sign_first:
            return product(kA, kP, s.x);
        case Stage::sign_square:
            return product(s.x, s.x, kY);
        case Stage::sign_factor:
            return factor(p, kY, kP);
        case Stage::sign_apply:
            return product(s.x, kP, other_x(s));
        case Stage::excess:
            return {kA, s.x, kA, kY, 0.25, 0.5, 0, true};
        case Stage::root_first_factor: {
            // f(κ·(I + B)), by B.
            const double k = s.scale;
            const Operation o = {kY, kY, kY, kP, p.c * k * k, p.b * k + 2 * p.c * k * k, p.a + p.b * k + p.c * k * k};
            return is_last(s, polynomials) ? shrinkage(o, k) : o;
        }
        case Stage::root_first_half:
            return {kY, kP, kP, kX0, s.scale, s.scale, 0};
        case Stage::root_first_y:
            return product(kX0, kP, s.y);
        case Stage::root_factor:
            return factor(p, s.y, kA);
        case Stage::root_product: {
            const Operation o = product(s.product, kA, next_product(s));
            return is_last(s, polynomials) ? shrinkage(o, s.scale) : o;
        }
        case Stage::root_half:
            return product(s.y, kA, kX0);
        case Stage::root_y:
            return product(kX0, kA, s.y == kX1 ? kY : kX1);
        case Stage::reduce:
        case Stage::done:
            break;
    }
    return {kNone, kNone, kNone, kNone, 0, 0, 0};
}

__device__ inline Measure measure_of(const State& s) {
    switch (s.stage) {
        case Stage::reduce:
            return Measure::trace;
        case Stage::fourth:
        case Stage::excess:
            return Measure::squares;
        default:
            return Measure::nothing;
    }
}

// The last polynomial whose interval, scaled to end at `largest`, reaches down to `smallest`.
__device__ inline int first_step(const Polynomials& p, double smallest, double largest) {
    int step = p.count - 1;
    while (step > 0 && p.steps[step].lower * largest > p.steps[step].upper * smallest) --step;
    return step;
}

__device__ inline void finish(State& s, Status status) {
    s.stage = Stage::done;
    s.status = status;
}

__device__ inline void after_reduce(State& s, const MatrixPlan& m, double measured) {
    s.trace = measured + m.rows;  // A = G/t² − I
    if (!isfinite(s.trace))
        finish(s, Status::non_finite);
    else if (s.trace <= 1)
        finish(s, Status::untouched);  // no eigenvalue exceeds the trace
    else if (m.rows == 1)
        s.stage = Stage::vector;
    else
        s.stage = s.trace > kLargestTrace ? Stage::rescale : Stage::square;
}

__device__ inline void after_fourth(State& s, const Polynomials& p, double measured) {
    // ‖A⁴‖ in the Frobenius norm bounds ‖A‖⁴, within a factor of √m.
    s.norm = sqrt(sqrt(sqrt(measured)));
    if (s.norm == 0) return finish(s, Status::untouched);  // every singular value is t
    s.step = first_step(p, kResolution, s.norm);
    s.stage = Stage::sign_first_factor;
}

__device__ inline void after_excess(State& s, const MatrixPlan& m, const Polynomials& p, double measured) {
    const double excess = sqrt(measured);
    // What the polynomials leave of B = 0.
    if (excess <= p.deviation * s.norm * sqrt(static_cast<double>(m.rows))) return finish(s, Status::untouched);
    const double largest = 1 + excess;
    s.step = first_step(p, 1, sqrt(largest));
    s.scale = p.steps[s.step].upper * p.steps[s.step].upper / largest;
    s.stage = Stage::root_first_factor;
}

// The state behind an operation whose measure, summed over all tiles, is `measured`.
__device__ inline void advance(State& s, const MatrixPlan& m, const Polynomials& p, double measured) {
    const bool last = is_last(s, p);
    switch (s.stage) {
        case Stage::reduce:
            return after_reduce(s, m, measured);
        case Stage::fourth:
            return after_fourth(s, p, measured);
        case Stage::excess:
            return after_excess(s, m, p, measured);
        case Stage::rescale:
            s.stage = Stage::square;
            return;
        case Stage::vector:
            return finish(s, Status::clipped);
        case Stage::square:
            s.stage = Stage::fourth;
            return;
        case Stage::sign_first_factor:
            s.stage = Stage::sign_first;
            return;
        case Stage::sign_first:
            s.stage = last ? Stage::excess : Stage::sign_square;
            ++s.step;
            return;
        case Stage::sign_square:
            s.stage = Stage::sign_factor;
            return;
        case Stage::sign_factor:
            s.stage = Stage::sign_apply;
            return;
        case Stage::sign_apply:
            s.x = other_x(s);
            s.stage = last ? Stage::excess : Stage::sign_square;
            ++s.step;
            return;
        case Stage::root_first_factor:
            if (last) return finish(s, Status::clipped);
            s.stage = Stage::root_first_half;
            return;
        case Stage::root_first_half:
            s.stage = Stage::root_first_y;
            return;
        case Stage::root_first_y:
            s.stage = Stage::root_factor;
            ++s.step;
            return;
        case Stage::root_factor:
            s.stage = Stage::root_product;
            return;
        case Stage::root_product:
            if (last) return finish(s, Status::clipped);
            s.product = next_product(s);
            s.stage = Stage::root_half;
            return;
        case Stage::root_half:
            s.stage = Stage::root_y;
            return;
        case Stage::root_y:
            s.y = s.y == kX1 ? kY : kX1;
            s.stage = Stage::root_factor;
            ++s.step;
            return;
        case Stage::done:
            return;
    }
}

}  // namespace tgan_fast
