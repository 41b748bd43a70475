// Batch norm + residual + activation, forward and backward, each in one parallel region.
//
//     y = act(v),  v = (x − mean)·scale + bias + residual,  scale = weight·rstd,  rstd = 1 / √(var + eps)
//     dx = scale·(g − mean(g) − (x − mean)·mean(g·(x − mean))·rstd²),  g = act'(v)·dy
//     dweight = Σ g·(x − mean)·rstd,  dbias = Σ g,  dresidual = g
//
// Forward reads x twice and the residual once, and writes y once. Backward reads x and dy twice, writes dx once, and
// recomputes v from x; with a residual, its first pass also reads the residual and writes g, and its second pass reads
// g instead of dy. The second pass begins where the first one ended, because that memory is still in the cache.
//
// Within a block of at most 128 rows, sums have the tensor's compute type, and the variance is relative to the mean of
// the block. Across blocks, sums are float64. Slices depend only on the shape, so that every number of threads gives
// the same bits.
#pragma once

#include <cmath>

#include "activations.h"
#include "slices.h"
#include "team.h"

namespace tgan_fast::cpu {

// Returns memory of the calling thread that is valid until its next call.
double* scratch(std::int64_t count);

namespace {

template <typename T>
class BatchNormKernel {
  public:
    BatchNormKernel(const BatchNorm& call, bool dense, int threads)
        : call_(call),
          slices_(call.shape, dense),
          channels_(call.shape.channels),
          groups_(call.shape.groups),
          width_(slices_.width()) {
        const std::int64_t useful = groups_ * slices_.values() * channels_ / kValuesOfThread;
        threads_ = static_cast<int>(most(1, least(threads, least(slices_.items(), useful))));
        const std::int64_t sums = kSums * groups_ * slices_.slices() * channels_;
        const std::int64_t constants = kConstants * groups_ * channels_;
        sums_ = scratch(sums + constants + threads_ * kRows * width_);
        constants_ = sums_ + sums;
        rows_ = constants_ + constants;
    }

    void forward(const BatchNormForward& call) {
        run_team(threads_, [&](const Team& team) {
            if (call_.training) {
                for_items(team, false, [&](const Item& item, bool) { add_statistics(call.x, team, item); });
                team.barrier();
            }
            const std::int64_t begin = team.begin(channels_), end = team.end(channels_);
            call_.training ? finish_statistics(call, begin, end) : take_statistics(call, begin, end);
            write_affine(begin, end);
            team.barrier();
            for_items(team, true, [&](const Item& item, bool differs) {
                if (differs) copy_constants(team, item, kMean, kBias);
                slices_.for_parts(item, [&](const Part& part) {
                    with_activation<Value>(call, [&](const auto& act) { normalize(call, act, team, part); });
                });
            });
        });
        if (call_.training && call.batches != nullptr) *call.batches += groups_;
    }

    void backward(const BatchNormBackward& call) {
        run_team(threads_, [&](const Team& team) {
            const std::int64_t begin = team.begin(channels_), end = team.end(channels_);
            write_affine(begin, end);
            team.barrier();
            for_items(team, false, [&](const Item& item, bool differs) {
                if (differs) copy_constants(team, item, kMean, kBias);
                add_gradients(call, team, item);
            });
            team.barrier();
            finish_gradients(call, begin, end);
            if (call.dx.data == nullptr) return;
            team.barrier();
            for_items(team, true, [&](const Item& item, bool differs) {
                if (differs) copy_constants(team, item, kMean, kOffset);
                slices_.for_parts(item, [&](const Part& part) {
                    if (call.residual.data != nullptr)
                        return write_input_gradient(call, call.dresidual, LeakyRelu<Value>{1}, team, part);
                    with_activation<Value>(
                        call, [&](const auto& act) { write_input_gradient(call, call.dy, act, team, part); });
                });
            });
        });
    }

  private:
    using Value = typename Tile<T>::Value;
    using Item = typename Slices<T>::Item;
    static constexpr int kWidth = Tile<T>::kWidth;

    // Rows of a thread's memory, with an entry for every column of the tensor's widest row: a channel's constants, or
    // sums in float64. They overlap, because statistics need no constants, and the sums of gradients only three.
    enum Row { kMean, kScale, kBias, kFactor, kOffset, kConstants, kFirst = 3, kSecond, kShift = 0, kTotal, kRows = 5 };
    static constexpr int kSums = 2;

    double* row_of_sums(const Team& team, Row row) const { return rows_ + (team.rank * kRows + row) * width_; }
    Value* row_of_constants(const Team& team, Row row) const {
        return reinterpret_cast<Value*>(row_of_sums(team, row));
    }

    // Two sums of every channel in a slice, [2, channels]; the final values for statistics are mean and Σ (x − mean)².
    double* sums(std::int64_t group, std::int64_t slice) const {
        return sums_ + kSums * (group * slices_.slices() + slice) * channels_;
    }
    // A constant of every channel in a group, [channels].
    Value* constants(std::int64_t group, int row) const {
        return reinterpret_cast<Value*>(constants_ + (group * kConstants + row) * channels_);
    }

    // Calls function(item, whether its channels or their group differ from those of the previous item).
    template <typename Function>
    INLINE void for_items(const Team& team, bool backwards, const Function& function) const {
        const std::int64_t begin = team.begin(slices_.items()), end = team.end(slices_.items());
        std::int64_t before = -1;
        for (std::int64_t i = begin; i < end; ++i) {
            const Item item = slices_.item(backwards ? begin + end - 1 - i : i);
            const std::int64_t now = item.group * channels_ + item.channel;
            function(item, now != before);
            before = now;
        }
    }

    // ---- statistics

    // Writes mean and Σ (x − mean)² of each of the item's channels.
    void add_statistics(const Operand& tensor, const Team& team, const Item& item) const {
        double *const shifts = sums(item.group, item.slice) + item.channel, *const squares = shifts + channels_;
        double* const totals = row_of_sums(team, kTotal);
        const double *const shift = row_of_sums(team, kShift), *const first = row_of_sums(team, kFirst);
        const double* const second = row_of_sums(team, kSecond);
        bool begins = true;
        slices_.for_parts(item, [&](const Part& part) {
            add_columns(View<const T>(tensor, part), part, team);
            if (begins)
                for (std::int64_t c = 0; c < item.channels; ++c) {
                    shifts[c] = shift[slices_.column_of(c, part.width, item.channels)];
                    totals[c] = squares[c] = 0;
                }
            begins = false;
            const double rows = static_cast<double>(part.rows());
            slices_.for_columns(part.width, item.channels, [&](std::int64_t c, std::int64_t column) {
                add_moved(totals[c], squares[c], shift[column] - shifts[c], rows, first[column], second[column]);
            });
        });
        const double inverse = 1 / static_cast<double>(slices_.values(item.slice));
        for (std::int64_t c = 0; c < item.channels; ++c) {
            const double distance = totals[c] * inverse;
            squares[c] -= totals[c] * distance;
            shifts[c] += distance;
        }
    }

    // Adds Σ (x − shift) and Σ (x − shift)² of `count` values, given these sums for a shift that is larger by `moved`.
    static INLINE void add_moved(double& first, double& second, double moved, double count, double more_first,
                                 double more_second) {
        first += more_first + count * moved;
        second += more_second + moved * (2 * more_first + count * moved);
    }

    // Writes, for each column, a shift near the mean, and Σ (x − shift) and Σ (x − shift)² over the rows of a part.
    void add_columns(const View<const T>& x, const Part& part, const Team& team) const {
        for_tiles<T>(part, [&](const Block& block, std::int64_t column, std::int64_t count, auto full) {
            Tile<T> mean = {}, sum = {}, squares = {};
            block.for_rows(
                [&](std::int64_t o, std::int64_t i) { mean = mean + load(full, x.at(o, i, column), count); });
            mean = mean * (Value(1) / static_cast<Value>(block.rows()));
            block.for_rows([&](std::int64_t o, std::int64_t i) {
                const auto centered = load(full, x.at(o, i, column), count) - mean;
                sum = sum + centered;
                squares = squares + centered * centered;
            });
            Value means[kWidth], sums[kWidth], sums_of_squares[kWidth];
            mean.store_values(means), sum.store_values(sums), squares.store_values(sums_of_squares);
            double* __restrict const shift = row_of_sums(team, kShift) + column;
            double* __restrict const first = row_of_sums(team, kFirst) + column;
            double* __restrict const second = row_of_sums(team, kSecond) + column;
            const double rows = static_cast<double>(block.rows());
            if (block.begins())
                for (int j = 0; j < kWidth; ++j)
                    shift[j] = means[j], first[j] = sums[j], second[j] = sums_of_squares[j];
            else
                for (int j = 0; j < kWidth; ++j)
                    add_moved(first[j], second[j], means[j] - shift[j], rows, sums[j], sums_of_squares[j]);
        });
    }

    // Combines the slices' statistics of these channels, group by group, and updates the running statistics.
    void finish_statistics(const BatchNormForward& call, std::int64_t begin, std::int64_t end) const {
        const double values = static_cast<double>(slices_.values());
        for (std::int64_t group = 0; group < groups_; ++group) {
            double* __restrict const mean = call_.mean + group * channels_;
            double* __restrict const rstd = call_.rstd + group * channels_;  // holds Σ (x − mean)² at first
            double count = 0;
            for (std::int64_t slice = 0; slice < slices_.slices(); ++slice) {
                const double* __restrict const means = sums(group, slice);
                const double* __restrict const squares = means + channels_;
                const double more = static_cast<double>(slices_.values(slice)), share = more / (count + more);
                if (slice == 0)
                    for (std::int64_t c = begin; c < end; ++c) mean[c] = means[c], rstd[c] = squares[c];
                else
                    for (std::int64_t c = begin; c < end; ++c) {  // Chan's formula for the union of two sets
                        const double distance = means[c] - mean[c];
                        rstd[c] += squares[c] + distance * distance * count * share;
                        mean[c] += distance * share;
                    }
                count += more;
            }
            if (call.running_mean != nullptr) {
                const double momentum =
                    call.averages_batches ? 1 / static_cast<double>(*call.batches + group + 1) : call.momentum;
                auto* __restrict const running_mean = static_cast<Value*>(call.running_mean);
                auto* __restrict const running_var = static_cast<Value*>(call.running_var);
                for (std::int64_t c = begin; c < end; ++c) {
                    const double old_mean = running_mean[c], old_var = running_var[c];
                    running_mean[c] = static_cast<Value>(old_mean + momentum * (mean[c] - old_mean));
                    running_var[c] = static_cast<Value>(old_var + momentum * (rstd[c] / (values - 1) - old_var));
                }
            }
            for (std::int64_t c = begin; c < end; ++c) rstd[c] = 1 / std::sqrt(rstd[c] / values + call.eps);
        }
    }

    // Uses the running statistics of these channels in place of the batch's.
    void take_statistics(const BatchNormForward& call, std::int64_t begin, std::int64_t end) const {
        double* __restrict const mean = call_.mean;
        double* __restrict const rstd = call_.rstd;
        const Value* __restrict const running_mean = static_cast<const Value*>(call.running_mean);
        const Value* __restrict const running_var = static_cast<const Value*>(call.running_var);
        for (std::int64_t c = begin; c < end; ++c) {
            mean[c] = running_mean[c];
            rstd[c] = 1 / std::sqrt(static_cast<double>(running_var[c]) + call.eps);
        }
    }

    // ---- y

    // Writes the constants of v = (x − mean)·scale + bias in the compute type; the bias corrects the mean's rounding.
    void write_affine(std::int64_t begin, std::int64_t end) const {
        const auto *const weight = static_cast<const Value*>(call_.weight), *const bias =
                                                                                static_cast<const Value*>(call_.bias);
        for (std::int64_t group = 0; group < groups_; ++group) {
            const double* __restrict const mean = call_.mean + group * channels_;
            const double* __restrict const rstd = call_.rstd + group * channels_;
            Value* __restrict const means = constants(group, kMean);
            Value* __restrict const scales = constants(group, kScale);
            Value* __restrict const biases = constants(group, kBias);
            for (std::int64_t c = begin; c < end; ++c) {
                const double scale = rstd[c] * (weight == nullptr ? 1.0 : static_cast<double>(weight[c]));
                means[c] = static_cast<Value>(mean[c]);
                scales[c] = static_cast<Value>(scale);
                const double shift = bias == nullptr ? 0.0 : static_cast<double>(bias[c]);
                biases[c] = static_cast<Value>(shift - (mean[c] - means[c]) * scale);
            }
        }
    }

    // Copies the constants of rows `first` to `last` into all columns of their channel.
    void copy_constants(const Team& team, const Item& item, int first, int last) const {
        for (int row = first; row <= last; ++row) {
            const Value* __restrict const from = constants(item.group, row) + item.channel;
            Value* __restrict const to = row_of_constants(team, static_cast<Row>(row));
            slices_.for_columns(slices_.columns(), item.channels,
                                [&](std::int64_t c, std::int64_t column) { to[column] = from[c]; });
        }
    }

    template <typename Act>
    void normalize(const BatchNormForward& call, const Act& act, const Team& team, const Part& part) const {
        const View<const T> x(call.x, part), residual(call.residual, part);
        const View<T> y(call.y, part);
        const bool has_residual = call.residual.data != nullptr;
        for_tiles<T>(part, [&](const Block& block, std::int64_t column, std::int64_t count, auto full) {
            const auto mean = constant(team, kMean, column), scale = constant(team, kScale, column);
            const auto bias = constant(team, kBias, column);
            block.for_rows([&](std::int64_t o, std::int64_t i) {
                auto v = (load(full, x.at(o, i, column), count) - mean) * scale + bias;
                if (has_residual) v = v + load(full, residual.at(o, i, column), count);
                const auto activated = Tile<T>::make([&](int k) { return act.value(v.vectors[k]); });
                store(full, activated, y.at(o, i, column), count);
            });
        });
    }

    // ---- gradients

    // Writes Σ g and Σ g·(x − mean) of each of the item's channels, with the rounded mean, and the residual's gradient.
    void add_gradients(const BatchNormBackward& call, const Team& team, const Item& item) const {
        double* __restrict const sums_g = sums(item.group, item.slice) + item.channel;
        double* __restrict const sums_gx = sums_g + channels_;
        for (std::int64_t c = 0; c < item.channels; ++c) sums_g[c] = sums_gx[c] = 0;
        const double *const first = row_of_sums(team, kFirst), *const second = row_of_sums(team, kSecond);
        slices_.for_parts(item, [&](const Part& part) {
            with_activation<Value>(call, [&](const auto& act) { add_gradient_columns(call, act, team, part); });
            slices_.for_columns(part.width, item.channels, [&](std::int64_t c, std::int64_t column) {
                sums_g[c] += first[column], sums_gx[c] += second[column];
            });
        });
    }

    template <typename Act>
    void add_gradient_columns(const BatchNormBackward& call, const Act& act, const Team& team, const Part& part) const {
        const View<const T> x(call.x, part), dy(call.dy, part), residual(call.residual, part);
        const View<T> dresidual(call.dresidual, part);
        const bool has_residual = call.residual.data != nullptr;
        for_tiles<T>(part, [&](const Block& block, std::int64_t column, std::int64_t count, auto full) {
            const auto mean = constant(team, kMean, column), scale = constant(team, kScale, column);
            const auto bias = constant(team, kBias, column);
            Tile<T> sum_g = {}, sum_gx = {};
            block.for_rows([&](std::int64_t o, std::int64_t i) {
                const auto centered = load(full, x.at(o, i, column), count) - mean;
                auto v = centered * scale + bias;
                if (has_residual) v = v + load(full, residual.at(o, i, column), count);
                const auto g = gradient(act, v, load(full, dy.at(o, i, column), count));
                if (has_residual) store(full, g, dresidual.at(o, i, column), count);
                sum_g = sum_g + g;
                sum_gx = sum_gx + g * centered;
            });
            Value sums_g[kWidth], sums_gx[kWidth];
            sum_g.store_values(sums_g), sum_gx.store_values(sums_gx);
            double* __restrict const first = row_of_sums(team, kFirst) + column;
            double* __restrict const second = row_of_sums(team, kSecond) + column;
            if (block.begins())
                for (int j = 0; j < kWidth; ++j) first[j] = sums_g[j], second[j] = sums_gx[j];
            else
                for (int j = 0; j < kWidth; ++j) first[j] += sums_g[j], second[j] += sums_gx[j];
        });
    }

    // Adds up the slices of these channels, and writes dweight, dbias, and the constants of
    // dx = (g + (x − mean)·factor + offset)·scale.
    void finish_gradients(const BatchNormBackward& call, std::int64_t begin, std::int64_t end) const {
        const double inverse = 1 / static_cast<double>(slices_.values());
        double *const dbias = sums(0, 0), *const dweight = dbias + channels_;
        for (std::int64_t group = 0; group < groups_; ++group) {
            double *const sums_g = sums(group, 0), *const sums_gx = sums_g + channels_;
            for (std::int64_t slice = 1; slice < slices_.slices(); ++slice) {
                const double* __restrict const more = sums(group, slice);
                for (std::int64_t c = begin; c < end; ++c) sums_g[c] += more[c], sums_gx[c] += more[channels_ + c];
            }
            const double* __restrict const mean = call_.mean + group * channels_;
            const double* __restrict const rstd = call_.rstd + group * channels_;
            const Value* __restrict const means = constants(group, kMean);
            Value* __restrict const factors = constants(group, kFactor);
            Value* __restrict const offsets = constants(group, kOffset);
            for (std::int64_t c = begin; c < end; ++c) {
                const double rounding = mean[c] - means[c], sum_g = sums_g[c], sum_gx = sums_gx[c] - rounding * sum_g;
                // In evaluation dx does not depend on the sums, which may be infinite.
                const double factor = call_.training ? -sum_gx * rstd[c] * rstd[c] * inverse : 0;
                factors[c] = static_cast<Value>(factor);
                offsets[c] = static_cast<Value>(call_.training ? -sum_g * inverse - rounding * factor : 0);
                dbias[c] = group == 0 ? sum_g : dbias[c] + sum_g;
                dweight[c] = group == 0 ? sum_gx * rstd[c] : dweight[c] + sum_gx * rstd[c];
            }
        }
        for (std::int64_t c = begin; c < end && call.dweight != nullptr; ++c)
            static_cast<Value*>(call.dweight)[c] = static_cast<Value>(dweight[c]);
        for (std::int64_t c = begin; c < end && call.dbias != nullptr; ++c)
            static_cast<Value*>(call.dbias)[c] = static_cast<Value>(dbias[c]);
    }

    template <typename Act>
    void write_input_gradient(const BatchNormBackward& call, const Operand& upstream, const Act& act, const Team& team,
                              const Part& part) const {
        const View<const T> x(call.x, part), dy(upstream, part);
        const View<T> dx(call.dx, part);
        for_tiles<T>(part, [&](const Block& block, std::int64_t column, std::int64_t count, auto full) {
            const auto mean = constant(team, kMean, column), scale = constant(team, kScale, column);
            const auto bias = constant(team, kBias, column);
            const auto factor = constant(team, kFactor, column), offset = constant(team, kOffset, column);
            block.for_rows([&](std::int64_t o, std::int64_t i) {
                const auto centered = load(full, x.at(o, i, column), count) - mean;
                const auto g = gradient(act, centered * scale + bias, load(full, dy.at(o, i, column), count));
                store(full, (centered * factor + g + offset) * scale, dx.at(o, i, column), count);
            });
        });
    }

    // ---- tiles

    template <typename Full>
    static INLINE Tile<T> load(Full, const T* from, std::int64_t count) {
        return Tile<T>::template load<Full::value>(from, count);
    }

    template <typename Full>
    static INLINE void store(Full, const Tile<T>& tile, T* to, std::int64_t count) {
        tile.template store<Full::value>(to, count);
    }

    INLINE Tile<T> constant(const Team& team, Row row, std::int64_t column) const {
        return Tile<T>::load_values(row_of_constants(team, row) + column);
    }

    template <typename Act>
    static INLINE Tile<T> gradient(const Act& act, const Tile<T>& v, const Tile<T>& dy) {
        return Tile<T>::make([&](int k) { return act.gradient(v.vectors[k], dy.vectors[k]); });
    }

    const BatchNorm& call_;
    const Slices<T> slices_;
    const std::int64_t channels_, groups_, width_;
    int threads_;
    double *sums_, *constants_, *rows_;
};

// Returns whether no row (channels-last) or sample (channels-first) of the tensor, if there is one, has gaps.
INLINE bool is_dense(const Shape& shape, const Operand& tensor) {
    if (tensor.data == nullptr) return true;
    if (!shape.channels_last) return shape.channels == 1 || tensor.channel == shape.cols;
    return tensor.row == shape.channels || shape.groups * shape.rows == 1;
}

template <typename T>
void batch_norm_forward(const BatchNormForward& call, int threads) {
    const bool dense =
        is_dense(call.shape, call.x) && is_dense(call.shape, call.residual) && is_dense(call.shape, call.y);
    BatchNormKernel<T>(call, dense, threads).forward(call);
}

template <typename T>
void batch_norm_backward(const BatchNormBackward& call, int threads) {
    const bool dense = is_dense(call.shape, call.x) && is_dense(call.shape, call.residual) &&
                       is_dense(call.shape, call.dy) && is_dense(call.shape, call.dx) &&
                       is_dense(call.shape, call.dresidual);
    BatchNormKernel<T>(call, dense, threads).backward(call);
}

}  // namespace
}  // namespace tgan_fast::cpu
