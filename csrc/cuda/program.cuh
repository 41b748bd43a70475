// Computes the matrix R of W' = W − R·W from the Gram matrix G = W·Wᵀ, by a program of matrix products.
//
//     A = G/t² − I                        eigenvalues σ²/t² − 1
//     X = sign(A)                         odd polynomials x·f(x²), composed; the first are skipped where ‖A‖ allows
//     B = A/2 + (A·X + X·A)/4 = max(A, 0) both orders, because rounding makes A·X less symmetric as ‖A‖ grows
//     M = (I + B)^(-1/2) = √κ·Π           the same polynomials: from y = κ·(I + B), y ← y·f(y)² tends to 1, so Π, the
//                                         product of all f(y), tends to (κ·(I + B))^(-1/2)
//     R = I − M
//
// |·| is continuous at 0, and the spectrum of I + B begins at 1, so clusters at the threshold and rank deficiency do no
// harm. Every matrix of a call has a State of its own and takes one Operation at a time. The device decides from the
// norms of the matrix how many operations there are, and whether their results are in fixed point or in float64. A slot
// in fixed point has a unit, which follows from a bound of the result's norm.
//
// The program is step(), from top to bottom. This table shows what the slots hold after the operation of each stage, if
// a later stage reads it:
//
//                    kA    kS    kX0    kX1    kY    kP    kM
//     gram           A                                            always in float64
//     estimate       A           A/‖A‖_F
//     square         A           A/‖A‖_F       A²
//     fourth         A                               A⁴           only its norm matters
//     scale          A     S                                      S = A/‖A‖·upper, in the first polynomial's interval
//     sign_square    A     S     x             x²                 x begins as S
//     sign_factor    A     S     x                   f
//     sign_apply     A     S            x                         x takes turns in kX0 and kX1
//     excess                                   B
//     root_first_factor                        B     Π            Π begins as the first f(y)
//     root_first_half            y·f                 Π
//     root_first_y                      y            Π
//     root_factor          f            y            Π
//     root_product         f            y                  Π      Π takes turns in kM and kP
//     root_half            f     y·f                       Π
//     root_y                                   y           Π      y takes turns in kX1 and kY
//     the last one               R                                in kR, which is kX0
#pragma once

#include "fixed_point.cuh"
#include "plan.cuh"

namespace tgan_fast {

// If σ² lies between t² and (1 + kResolution)·t², it is lowered only in part: σ stays up to 4.2e-8·t too large, or
// 8.8e-8·t where the last polynomial alone is enough for ‖A‖.
constexpr double kResolution = 2.5e-6;
// If ‖W‖² exceeds this times t², rounding of the largest eigenvalues would disturb those near t². Such a W is clipped
// at the larger threshold ‖W‖/3162, and further by the next call.
constexpr double kLargestTrace = 1e7;

// Largest ‖A‖ for which the iteration is in fixed point (σ ≤ 4.1·t). Beyond it, rounding to a unit that holds the
// largest eigenvalues would disturb those near 0.
constexpr double kLargestFixedNorm = 16;
// Rounding in fixed point leaves up to this times ‖A‖ in each element of a B that should be 0.
constexpr double kFixedResidue = 2e-10;

// The polynomials from sign_schedule.py. In every polynomial x·f(x²), f(y) = a + b·y + c·y².
struct SignSchedule {
    SignPolynomial polynomials[kPolynomials];
    int count;
    double deviation;
};

// out = identity·I + addend_scale·addend + product_scale·left·right, of symmetric matrices that commute. With
// `both_orders`, the product is left·right + right·left; without `right`, it is `left`; without either, zero.
struct Operation {
    Slot left, right, addend, out;
    double product_scale, addend_scale, identity;
    bool both_orders = false;
    bool measured = false;  // step() needs the measures of the result
    // run() fills these in; operands and result in fixed point are then in their units.
    bool fixed_left = false, fixed_addend = false;
    double out_unit = 0;  // 0 for float64
};

// Sums over a result: of its diagonal, and of the squares of its elements.
struct Measures {
    double trace, squares;
};

// The stage at which step() continues. A stage is named after its operation.
enum class Stage : int {
    gram,
    estimate,
    estimate_rescaled,
    square,
    fourth,
    scale,
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
    clipped,
    done,
};

struct State {
    Operation operation = {};
    Stage next = Stage::gram;
    Status status = Status::untouched;
    bool fixed = true;             // whether results are in fixed point
    double units[kSlots] = {};     // of the slots in fixed point; 0 for those in float64
    int polynomial = 0;            // index into the schedule
    double frobenius_norm = 0;     // of A
    double norm = 0;               // bound of ‖A‖
    double ratio = 0;              // A = ratio·S
    double scale = 0;              // κ
    double largest_shrinkage = 0;  // bound of ‖R‖
    Slot x = kS, y = kX1, product = kP;
};

__device__ inline bool is_done(const State& s) { return s.next == Stage::done; }

// Makes the blocks run `operation`, and step() continue at `next` afterwards. `bound` is one of the result's norm;
// without it, the result is in float64.
__device__ inline void run(State& s, const Operation& operation, Stage next, double bound = 0) {
    Operation& o = s.operation = operation;
    const auto unit = [&](Slot slot) { return slot >= 0 ? s.units[slot] : 0; };
    const auto factor = [&](Slot slot) { return unit(slot) == 0 ? 1 : unit(slot); };
    o.fixed_left = unit(o.left) != 0;
    o.fixed_addend = unit(o.addend) != 0;
    // The largest value may exceed the bound a little, by rounding and by the cushion of sign_schedule.py.
    o.out_unit = s.fixed ? bound * (1.002 / kLargestInteger) : 0;
    const double inverse = o.out_unit == 0 ? 1 : 1 / o.out_unit;
    o.product_scale *= factor(o.left) * factor(o.right) * inverse;
    if (o.fixed_left && o.right != kNone) o.product_scale *= kProductUnit;
    o.addend_scale *= factor(o.addend) * inverse;
    o.identity *= inverse;
    s.units[o.out] = o.out_unit;
    s.next = next;
}

__device__ inline void finish(State& s, Status status) {
    s.operation = {};
    s.next = Stage::done;
    s.status = status;
}

__device__ inline Operation product(Slot left, Slot right, Slot out) { return {left, right, kNone, out, 1, 0, 0}; }

__device__ inline Operation measured(Operation o) {
    o.measured = true;
    return o;
}

// f(y) of a polynomial.
__device__ inline Operation factor(const SignPolynomial& p, Slot y, Slot out) { return {y, y, y, out, p.c, p.b, p.a}; }

// The operation for R = I − √κ·Π, given the operation `o` for Π, and κ as `scale`.
__device__ inline Operation shrinkage(const Operation& o, double scale) {
    const double root = sqrt(scale);
    return {o.left, o.right, o.addend, kR, -root * o.product_scale, -root * o.addend_scale, 1 - root * o.identity};
}

__device__ inline Slot other(Slot current, Slot one, Slot two) { return current == one ? two : one; }

// Returns the last polynomial whose interval, scaled to end at `largest`, reaches down to `smallest`.
__device__ inline int first_polynomial(const SignSchedule& schedule, double smallest, double largest) {
    int i = schedule.count - 1;
    while (i > 0 && schedule.polynomials[i].lower * largest > schedule.polynomials[i].upper * smallest) --i;
    return i;
}

// Stores the next operation in the state; `found` are the measures of the previous operation. A stage that uses them
// stores an operation that is not measured; advance_all says why.
__device__ inline void step(State& s, const MatrixPlan& m, const SignSchedule& schedule, const Measures& found) {
    const auto polynomial = [&]() -> const SignPolynomial& { return schedule.polynomials[s.polynomial]; };
    const auto is_last = [&] { return s.polynomial + 1 == schedule.count; };
    // Upper end of the interval that the polynomial leaves.
    const auto reached = [&] { return is_last() ? 1 : schedule.polynomials[s.polynomial + 1].upper; };
    switch (s.next) {
        case Stage::gram:
            return run(s, measured({kGram, kNone, kNone, kA, 1, 0, -1}), Stage::estimate);
        case Stage::estimate: {
            const double trace = found.trace + m.rows;  // of G/t²
            if (!isfinite(trace)) return finish(s, Status::non_finite);
            if (trace <= 1) return finish(s, Status::untouched);  // no eigenvalue exceeds the trace
            if (m.rows == 1) {
                s.fixed = s.fixed && trace <= 1 + kLargestFixedNorm;
                const double r = 1 - 1 / sqrt(fmin(trace, kLargestTrace));
                return run(s, {kNone, kNone, kNone, kR, 0, 0, r}, Stage::clipped, 1);
            }
            // The squares of the largest float32 numbers overflow; the trace is a bound too.
            s.frobenius_norm = fmin(sqrt(found.squares), trace + sqrt(static_cast<double>(m.rows)));
            if (s.frobenius_norm == 0) return finish(s, Status::untouched);  // every singular value is t
            if (trace > kLargestTrace) {
                // A for the larger threshold; from now on, `estimate` scales that.
                const double r = kLargestTrace / trace;
                s.frobenius_norm = r * s.frobenius_norm + (1 - r) * sqrt(static_cast<double>(m.rows));
                return run(s, {kA, kNone, kNone, kA, r, 0, r - 1}, Stage::estimate_rescaled);
            }
            [[fallthrough]];
        }
        case Stage::estimate_rescaled:
            return run(s, {kA, kNone, kNone, kX0, 1 / s.frobenius_norm, 0, 0}, Stage::square, 1);
        case Stage::square:
            return run(s, product(kX0, kX0, kY), Stage::fourth, 1);
        case Stage::fourth:
            return run(s, measured(product(kY, kY, kP)), Stage::scale, 1);

        case Stage::scale:
            // ‖A⁴‖ in the Frobenius norm bounds ‖A‖⁴, within a factor of √m. The rest is for rounding in fixed point.
            s.norm = 1.0001 * s.frobenius_norm * sqrt(sqrt(sqrt(found.squares)));
            s.fixed = s.fixed && s.norm <= kLargestFixedNorm;
            s.polynomial = first_polynomial(schedule, kResolution, s.norm);
            s.ratio = s.norm / polynomial().upper;
            return run(s, {kA, kNone, kNone, kS, 1 / s.ratio, 0, 0}, Stage::sign_square, polynomial().upper);
        case Stage::sign_square:
            return run(s, product(s.x, s.x, kY), Stage::sign_factor, polynomial().upper * polynomial().upper);
        case Stage::sign_factor:
            return run(s, factor(polynomial(), kY, kP), Stage::sign_apply, polynomial().a);
        case Stage::sign_apply: {
            const Slot out = other(s.x, kX0, kX1);
            run(s, product(s.x, kP, out), is_last() ? Stage::excess : Stage::sign_square, reached());
            s.x = out;
            if (!is_last()) ++s.polynomial;
            return;
        }
        case Stage::excess: {
            // B = A/2 + (A·x + x·A)/4
            Operation o = measured({kS, s.x, kA, kY, s.ratio / 4, 0.5, 0});
            o.both_orders = true;
            return run(s, o, Stage::root_first_factor, s.norm);
        }

        case Stage::root_first_factor: {
            const double excess = sqrt(found.squares);  // ‖B‖
            // If B is 0, this much can still be left by the polynomials' deviation and by rounding.
            const double rows = m.rows;
            if (excess <= s.norm * (schedule.deviation * sqrt(rows) + (s.fixed ? kFixedResidue * rows : 0)))
                return finish(s, Status::untouched);
            s.largest_shrinkage = fmin(1.0, excess / 2);
            const double largest = 1 + fmin(excess, s.norm);
            s.polynomial = first_polynomial(schedule, 1, sqrt(largest));
            const SignPolynomial& p = polynomial();
            const double k = s.scale = p.upper * p.upper / largest;
            // f(κ·(I + B)) as a polynomial of B.
            const Operation o = {kY, kY, kY, kP, p.c * k * k, p.b * k + 2 * p.c * k * k, p.a + p.b * k + p.c * k * k};
            if (is_last()) return run(s, shrinkage(o, k), Stage::clipped, s.largest_shrinkage);
            return run(s, o, Stage::root_first_half, fmin(p.a, reached() / sqrt(k)));
        }
        case Stage::root_first_half:
            // y·f(y) = κ·(I + B)·f(y)
            return run(s, {kY, kP, kP, kX0, s.scale, s.scale, 0}, Stage::root_first_y, polynomial().upper * reached());
        case Stage::root_first_y:
            return run(s, product(kX0, kP, s.y), Stage::root_factor, reached() * reached());
        case Stage::root_factor:
            ++s.polynomial;
            return run(s, factor(polynomial(), s.y, kS), Stage::root_product,
                       fmin(polynomial().a, reached() / polynomial().lower));
        case Stage::root_product: {
            const Operation o = product(s.product, kS, other(s.product, kP, kM));
            if (is_last()) return run(s, shrinkage(o, s.scale), Stage::clipped, s.largest_shrinkage);
            s.product = o.out;
            return run(s, o, Stage::root_half, reached() / sqrt(s.scale));
        }
        case Stage::root_half:
            return run(s, product(s.y, kS, kX0), Stage::root_y, polynomial().upper * reached());
        case Stage::root_y:
            s.y = other(s.y, kX1, kY);
            return run(s, product(kX0, kS, s.y), Stage::root_factor, reached() * reached());

        case Stage::clipped:
            return finish(s, Status::clipped);
        case Stage::done:
            return;
    }
}

}  // namespace tgan_fast
