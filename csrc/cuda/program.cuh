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
// norms of the matrix how many operations there are.
//
// The program is step(), from top to bottom. This table shows what the slots hold after the operation of each stage, if
// a later stage reads it:
//
//                          kA    kX0    kX1    kY    kP    kM
//     gram, trace          A
//     square               A                   A²
//     fourth               A                   A²    A⁴
//     sign_first_factor    A                         f           in place of A⁴, element by element
//     sign_first           A     x
//     sign_square          A     x             x²
//     sign_factor          A     x                   f
//     sign_apply           A            x                        x takes turns in kX0 and kX1
//     excess                                   B
//     root_first_factor                        B     Π           Π begins as the first f(y)
//     root_first_half            y·f                 Π
//     root_first_y                      y            Π
//     root_factor          f            y            Π
//     root_product         f            y                  Π     Π takes turns in kM and kP
//     root_half            f     y·f                       Π
//     root_y                                   y           Π     y takes turns in kX1 and kY
//     the last one               R                               in kR, which is kX0
#pragma once

#include "plan.cuh"

namespace tgan_fast {

// If σ² lies between t² and (1 + kResolution)·t², it is lowered only in part: σ stays up to 1.6e-7·t too large, a
// sixteenth of kResolution.
constexpr double kResolution = 2.5e-6;
// If ‖W‖² exceeds this times t², rounding of the largest eigenvalues would disturb those near t². Such a W is clipped
// at the larger threshold ‖W‖/3162, and further by the next call.
constexpr double kLargestTrace = 1e7;

// The polynomials from sign_schedule.py. In every polynomial x·f(x²), f(y) = a + b·y + c·y².
struct SignSchedule {
    SignPolynomial polynomials[kPolynomials];
    int count;
    double deviation;
};

// The sum over an operation's result that step() needs afterwards: of its diagonal, or of the squares of all elements.
enum class Measure : int { nothing, trace, squares };

// out = identity·I + addend_scale·addend + product_scale·left·right, of symmetric matrices that commute. With
// `both_orders`, the product is left·right + right·left; without `right`, it is `left`; without either, zero.
struct Operation {
    Slot left, right, addend, out;
    double product_scale, addend_scale, identity;
    bool both_orders = false;
    Measure measure = Measure::nothing;
};

// The stage at which step() continues. A stage is named after its operation, but `trace` after its input.
enum class Stage : int {
    gram,
    trace,
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
    clipped,
    done,
};

struct State {
    Operation operation = {};
    Stage next = Stage::gram;
    Status status = Status::untouched;
    int polynomial = 0;  // index into the schedule
    double norm = 0;     // bound of ‖A‖
    double scale = 0;    // κ
    Slot x = kX0, y = kX1, product = kP;
};

__device__ inline bool is_done(const State& s) { return s.next == Stage::done; }

// Makes the blocks run `operation`, and step() continue at `next` afterwards.
__device__ inline void run(State& s, const Operation& operation, Stage next, Measure measure = Measure::nothing) {
    s.operation = operation;
    s.operation.measure = measure;
    s.next = next;
}

__device__ inline void finish(State& s, Status status) {
    run(s, {}, Stage::done);
    s.status = status;
}

__device__ inline Operation product(Slot left, Slot right, Slot out) { return {left, right, kNone, out, 1, 0, 0}; }

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

// Stores the next operation in the state; `measured` is the measure of the previous operation, summed over all tiles. A
// stage that uses `measured` stores an operation without a measure; advance_all says why.
__device__ inline void step(State& s, const MatrixPlan& m, const SignSchedule& schedule, double measured) {
    const auto polynomial = [&]() -> const SignPolynomial& { return schedule.polynomials[s.polynomial]; };
    const auto is_last = [&] { return s.polynomial + 1 == schedule.count; };
    switch (s.next) {
        case Stage::gram:
            // A = G/t² − I
            return run(s, {kGram, kNone, kNone, kA, 1, 0, -1}, Stage::trace, Measure::trace);
        case Stage::trace: {
            const double trace = measured + m.rows;  // of G/t²
            if (!isfinite(trace)) return finish(s, Status::non_finite);
            if (trace <= 1) return finish(s, Status::untouched);  // no eigenvalue exceeds the trace
            if (m.rows == 1) return run(s, {kNone, kNone, kNone, kR, 0, 0, 1 - 1 / sqrt(trace)}, Stage::clipped);
            if (trace > kLargestTrace) {
                // A for the larger threshold.
                const double r = kLargestTrace / trace;
                return run(s, {kA, kNone, kNone, kA, r, 0, r - 1}, Stage::square);
            }
            [[fallthrough]];
        }
        case Stage::square:
            return run(s, product(kA, kA, kY), Stage::fourth);
        case Stage::fourth:
            return run(s, product(kY, kY, kP), Stage::sign_first_factor, Measure::squares);

        case Stage::sign_first_factor: {
            // ‖A⁴‖ in the Frobenius norm bounds ‖A‖⁴, within a factor of √m.
            s.norm = sqrt(sqrt(sqrt(measured)));
            if (s.norm == 0) return finish(s, Status::untouched);  // every singular value is t
            s.polynomial = first_polynomial(schedule, kResolution, s.norm);
            // With x = A·upper/norm, x·f(x²) = A·(…), where A² and A⁴ give the second factor.
            const SignPolynomial& p = polynomial();
            const double u = p.upper / s.norm;
            return run(s, {kP, kNone, kY, kP, p.c * u * u * u * u * u, p.b * u * u * u, p.a * u}, Stage::sign_first);
        }
        case Stage::sign_first:
            return run(s, product(kA, kP, s.x), Stage::sign_square);
        case Stage::sign_square:
            if (!is_last()) {
                ++s.polynomial;
                return run(s, product(s.x, s.x, kY), Stage::sign_factor);
            }
            [[fallthrough]];
        case Stage::excess:
            // B = A/2 + (A·x + x·A)/4
            return run(s, {kA, s.x, kA, kY, 0.25, 0.5, 0, true}, Stage::root_first_factor, Measure::squares);
        case Stage::sign_factor:
            return run(s, factor(polynomial(), kY, kP), Stage::sign_apply);
        case Stage::sign_apply: {
            const Operation o = product(s.x, kP, other(s.x, kX0, kX1));
            s.x = o.out;
            return run(s, o, Stage::sign_square);
        }

        case Stage::root_first_factor: {
            const double excess = sqrt(measured);  // ‖B‖
            // If B is 0, the polynomials' deviation can still leave this much.
            if (excess <= schedule.deviation * s.norm * sqrt(static_cast<double>(m.rows)))
                return finish(s, Status::untouched);
            const double largest = 1 + excess;
            s.polynomial = first_polynomial(schedule, 1, sqrt(largest));
            const SignPolynomial& p = polynomial();
            const double k = s.scale = p.upper * p.upper / largest;
            // f(κ·(I + B)) as a polynomial of B.
            const Operation o = {kY, kY, kY, kP, p.c * k * k, p.b * k + 2 * p.c * k * k, p.a + p.b * k + p.c * k * k};
            if (is_last()) return run(s, shrinkage(o, k), Stage::clipped);
            return run(s, o, Stage::root_first_half);
        }
        case Stage::root_first_half:
            // y·f(y) = κ·(I + B)·f(y)
            return run(s, {kY, kP, kP, kX0, s.scale, s.scale, 0}, Stage::root_first_y);
        case Stage::root_first_y:
            return run(s, product(kX0, kP, s.y), Stage::root_factor);
        case Stage::root_factor:
            ++s.polynomial;
            return run(s, factor(polynomial(), s.y, kA), Stage::root_product);
        case Stage::root_product: {
            const Operation o = product(s.product, kA, other(s.product, kP, kM));
            if (is_last()) return run(s, shrinkage(o, s.scale), Stage::clipped);
            s.product = o.out;
            return run(s, o, Stage::root_half);
        }
        case Stage::root_half:
            return run(s, product(s.y, kA, kX0), Stage::root_y);
        case Stage::root_y:
            s.y = other(s.y, kX1, kY);
            return run(s, product(kX0, kA, s.y), Stage::root_factor);

        case Stage::clipped:
            return finish(s, Status::clipped);
        case Stage::done:
            return;
    }
}

}  // namespace tgan_fast
