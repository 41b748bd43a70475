// Cuts a tensor into slices for the threads, a slice into parts whose rows have one stride, and a part into tiles.
//
// A slice has one of three arrangements in memory:
//
//     columns    channels-last: rows of all channels; adjacent rows are joined into a longer row that fills tiles
//     samples    channels-first with few pixels: a sample is a row, in which every channel has some adjacent columns
//     runs       channels-first: the pixels of one channel in several samples, each read as rows of a tile's width
#pragma once

#include <type_traits>

#include "kernels.h"
#include "vectors.h"

namespace tgan_fast::cpu {

namespace {

constexpr std::int64_t kSliceElements = 1 << 15;  // minimum for most slices
constexpr std::int64_t kMostSlices = 64;          // per group
constexpr std::int64_t kWidestRow = 8192;         // elements of a joined row
// A block that is one tile wide takes 16 KB, half of the L1 cache. A wider block has fewer rows, but not so few that
// the float64 sums, which are added once per block, would take longer than the sums in the tensor's compute type.
constexpr std::int64_t kBlockRows = 128;
constexpr std::int64_t kFewestBlockRows = 8;

INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
INLINE std::int64_t greatest_common_divisor(std::int64_t a, std::int64_t b) {
    while (b != 0) {
        const std::int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// A part of a slice: `outer` times `inner` rows of `width` elements.
struct Part {
    std::int64_t row;  // where it begins
    std::int64_t channel;
    std::int64_t column;
    std::int64_t outer;  // one row of the tensor apart
    std::int64_t inner;  // `step` rows of the tensor apart, or a tile's width apart if `step` is 0
    std::int64_t step;
    std::int64_t width;

    std::int64_t rows() const { return outer * inner; }
};

// A tensor's elements in a part.
template <typename T>
struct View {
    T* data;
    std::int64_t outer;
    std::int64_t inner;

    View(const Operand& tensor, const Part& part)
        : data(static_cast<T*>(tensor.data) + part.row * tensor.row + part.channel * tensor.channel + part.column),
          outer(tensor.row),
          inner(part.step == 0 ? Tile<std::remove_const_t<T>>::kWidth : part.step * tensor.row) {}

    INLINE T* at(std::int64_t o, std::int64_t i, std::int64_t column) const {
        return data + o * outer + i * inner + column;
    }
};

// Rows of a part that are processed together while they are in the cache.
struct Block {
    std::int64_t outer_begin, outer_end, inner_begin, inner_end;

    std::int64_t rows() const { return (outer_end - outer_begin) * (inner_end - inner_begin); }
    bool begins() const { return outer_begin == 0 && inner_begin == 0; }

    template <typename Function>
    INLINE void for_rows(const Function& function) const {
        for (std::int64_t o = outer_begin; o < outer_end; ++o)
            for (std::int64_t i = inner_begin; i < inner_end; ++i) function(o, i);
    }
};

template <bool kValue>
struct Constant {
    static constexpr bool value = kValue;
};

// Calls function(block, first column, number of columns, whether the tile is full) for every tile of every block.
template <typename T, typename Function>
INLINE void for_tiles(const Part& part, const Function& function) {
    constexpr std::int64_t kWidth = Tile<T>::kWidth;
    const std::int64_t rows = most(kFewestBlockRows, kBlockRows * kWidth / most(kWidth, part.width));
    const std::int64_t inner_rows = least(part.inner, rows);
    const std::int64_t outer_rows = inner_rows < part.inner ? 1 : most(1, rows / part.inner);
    for (std::int64_t o = 0; o < part.outer; o += outer_rows) {
        for (std::int64_t i = 0; i < part.inner; i += inner_rows) {
            const Block block = {o, least(part.outer, o + outer_rows), i, least(part.inner, i + inner_rows)};
            std::int64_t column = 0;
            for (; column + kWidth <= part.width; column += kWidth) function(block, column, kWidth, Constant<true>());
            if (column < part.width) function(block, column, part.width - column, Constant<false>());
        }
    }
}

// The slices of a tensor, and how channels lie in their rows.
template <typename T>
class Slices {
  public:
    static constexpr std::int64_t kWidth = Tile<T>::kWidth;

    // `dense` means that no row (channels-last) or sample (channels-first) of any tensor has gaps.
    Slices(const Shape& shape, bool dense) : shape_(shape) {
        const std::int64_t elements = shape.rows * shape.channels * shape.cols;
        samples_ = !shape.channels_last && shape.cols < kWidth && dense;
        runs_ = !shape.channels_last && !samples_;
        fold_ = 1;
        if (shape.channels_last && dense) {
            const std::int64_t fold = kWidth / greatest_common_divisor(shape.channels, kWidth);
            if (fold * shape.channels <= kWidestRow) fold_ = fold;
        }
        const std::int64_t values = runs_ ? shape.rows * shape.cols : elements;
        const std::int64_t fewest_rows = runs_ ? 1 : kFewestBlockRows * fold_;
        slices_ = most(1, least(least(values / kSliceElements, kMostSlices), shape.rows / fewest_rows));
    }

    // Number of slices of a group, each with sums for all channels.
    std::int64_t slices() const { return slices_; }
    // Number of work items of all groups. An item is a slice, or one channel of a slice.
    std::int64_t items() const { return shape_.groups * slices_ * (runs_ ? shape_.channels : 1); }
    // Number of columns of the widest row, and the same rounded up to whole tiles.
    std::int64_t columns() const {
        if (runs_) return kWidth;
        return samples_ ? shape_.channels * shape_.cols : fold_ * shape_.channels;
    }
    std::int64_t width() const { return (columns() + kWidth - 1) / kWidth * kWidth; }
    // Number of values of a channel in a slice, and in a group.
    std::int64_t values(std::int64_t slice) const { return (first_row(slice + 1) - first_row(slice)) * pixels(); }
    std::int64_t values() const { return shape_.rows * pixels(); }

    struct Item {
        std::int64_t group, slice;
        std::int64_t channel, channels;  // the first one and the number of channels
    };

    Item item(std::int64_t index) const {
        const std::int64_t channels = runs_ ? shape_.channels : 1, slice = index / channels;
        return {slice / slices_, slice % slices_, index % channels, runs_ ? 1 : shape_.channels};
    }

    // Calls function(part) for each of at most two parts of an item.
    template <typename Function>
    INLINE void for_parts(const Item& item, const Function& function) const {
        const std::int64_t row = item.group * shape_.rows + first_row(item.slice);
        const std::int64_t rows = first_row(item.slice + 1) - first_row(item.slice);
        if (runs_) {
            const std::int64_t whole = shape_.cols / kWidth, rest = shape_.cols % kWidth;
            if (whole > 0) function(Part{row, item.channel, 0, rows, whole, 0, kWidth});
            if (rest > 0) function(Part{row, item.channel, whole * kWidth, 1, rows, 1, rest});
        } else if (samples_) {
            function(Part{row, 0, 0, 1, rows, 1, shape_.channels * shape_.cols});
        } else {
            const std::int64_t whole = rows / fold_, rest = rows % fold_;
            if (whole > 0) function(Part{row, 0, 0, 1, whole, fold_, fold_ * shape_.channels});
            if (rest > 0) function(Part{row + whole * fold_, 0, 0, 1, 1, 1, rest * shape_.channels});
        }
    }

    // The first column of a channel in a row of this width.
    std::int64_t column_of(std::int64_t channel, std::int64_t width, std::int64_t channels) const {
        return samples_ ? channel * (width / channels) : channel;
    }

    // Calls function(channel of the item, column) for every column of a row of this width, in memory order.
    template <typename Function>
    INLINE void for_columns(std::int64_t width, std::int64_t channels, const Function& function) const {
        const std::int64_t copies = width / channels;
        if (samples_) {
            for (std::int64_t c = 0; c < channels; ++c)
                for (std::int64_t copy = 0; copy < copies; ++copy) function(c, c * copies + copy);
        } else {
            for (std::int64_t copy = 0; copy < copies; ++copy)
                for (std::int64_t c = 0; c < channels; ++c) function(c, copy * channels + c);
        }
    }

  private:
    std::int64_t pixels() const { return shape_.channels_last ? 1 : shape_.cols; }
    std::int64_t first_row(std::int64_t slice) const { return shape_.rows * slice / slices_; }

    Shape shape_;
    bool samples_, runs_;
    std::int64_t fold_, slices_;
};

}  // namespace
}  // namespace tgan_fast::cpu
