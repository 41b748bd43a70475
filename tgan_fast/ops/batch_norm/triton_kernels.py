"""Triton kernels of batch norm + activation.

    v = (x - mean)·scale + bias + residual,  scale = weight·rstd,  rstd = 1 / sqrt(var + eps),  y = act(v)
    g = dy·act'(v)
    dx = scale·(g - mean(g) - (x - mean)·mean(g·(x - mean))·rstd²)
    dweight = sum(g·(x - mean))·rstd,  dbias = sum(g),  dresidual = g

    leaky_relu   v if v > 0 else slope·v
    relu6        min(max(v, 0), 6)
    hardswish    v·min(max(v + 3, 0), 6) / 6
    silu         v·σ(v),  σ(w) = 1 / (1 + exp(-w))
    gelu_tanh    v·σ(w),  w = 2·√(2/π)·(v + 0.044715·v³),  which is v·(1 + tanh(w/2)) / 2

Six kernels for tensors of any size; in half precision they move 6 bytes per element forward and 10 backward:

    statistics          reads x          writes partial sums of x - shift and its square, one set per program
    combine_statistics  reads the sums   writes mean and rstd; updates the running statistics
    normalize           reads x          writes y
    gradient_sums       reads x, dy      writes partial sums of g and g·(x - mean), one set per program
    combine_gradients   reads the sums   writes their totals, dweight and dbias
    input_gradient      reads x, dy      writes dx

With a residual, normalize and gradient_sums read it too, and gradient_sums writes dresidual, which input_gradient reads
instead of dy: 8 bytes forward and 14 backward.

Two more, small_forward and small_backward, compute a whole direction at once if the values of a channel fit one tile:
4 bytes per element forward and 6 backward, or 6 and 10 with a residual.

A tile is [BLOCK_ROWS, BLOCK_COLS], its columns adjacent in memory. If channels-last, a row is a pixel and a column a
channel. If channels-first, a tile lies within one channel, a row is a sample and a column a pixel. The samples form
`groups` groups of equally many rows, each with its own statistics. Sums are float32 within a program and float64 across
programs. Offsets have 64 bits. There are no atomics, so results repeat bit for bit.
"""

import math

import triton
import triton.language as tl

# Partial sums are combined in tiles of this many programs and channels; eight floats are a sector of memory.
COMBINED_SPLITS = tl.constexpr(128)
COMBINED_CHANNELS = tl.constexpr(8)

# gelu_tanh is v·σ(GELU_SLOPE·v + GELU_CUBIC·v³).
GELU_SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))
GELU_CUBIC = tl.constexpr(0.044715 * 2 * math.sqrt(2 / math.pi))


@triton.jit
def _program_ids(splits, blocks, LAST_FIRST: tl.constexpr):
    """Return this program's split of the tiles, its block of channels (one channel if channels-first) and its group.

    A second pass over x goes backwards over programs and tiles, because what was read last is still in the L2 cache.
    """
    program = tl.program_id(0)
    if LAST_FIRST:
        program = tl.num_programs(0) - 1 - program
    return program % splits, program // splits % blocks, (program // splits // blocks).to(tl.int64)


@triton.jit
def _tile_count(rows, cols, CHANNELS_LAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Return the number of tiles of a block of channels in a group."""
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    if not CHANNELS_LAST:
        tiles *= tl.cdiv(cols, BLOCK_COLS)
    return tiles


@triton.jit
def _tile_origin(tile, block, cols, CHANNELS_LAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Return the first row and column of a tile."""
    if CHANNELS_LAST:
        return tl.cast(tile, tl.int64) * BLOCK_ROWS, tl.cast(block, tl.int64) * BLOCK_COLS
    else:
        tiles_in_row = tl.cdiv(cols, BLOCK_COLS)
        first_row = tl.cast(tile // tiles_in_row, tl.int64) * BLOCK_ROWS
        return first_row, tl.cast(tile % tiles_in_row, tl.int64) * BLOCK_COLS


@triton.jit
def _mask(
    first_row, first_col, rows, cols,
    ALIGNMENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    row = first_row + tl.arange(0, BLOCK_ROWS)[:, None]
    col = first_col + tl.arange(0, BLOCK_COLS)[None, :]
    return (row < rows) & (col < _aligned(cols, ALIGNMENT))


@triton.jit
def _value_count(
    first_row, first_col, rows, cols,
    CHANNELS_LAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Return the number of values of a channel in a tile."""
    count = tl.minimum(rows - first_row, BLOCK_ROWS)
    if not CHANNELS_LAST:
        count *= tl.minimum(cols - first_col, BLOCK_COLS)
    return count.to(tl.float32)


@triton.jit
def _tile_pointer(
    pointer, group, first_row, first_col, block, rows, row_stride, channel_stride,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Return a pointer to the first element of a tile."""
    pointer += (group * rows + first_row) * _aligned(row_stride, ALIGNMENT) + first_col
    if not CHANNELS_LAST:
        pointer += tl.cast(block, tl.int64) * _aligned(channel_stride, ALIGNMENT)
    return pointer


@triton.jit
def _tile_offsets(row_stride, ALIGNMENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Return the offsets [BLOCK_ROWS, BLOCK_COLS] of a tile's elements from its first one."""
    row = tl.arange(0, BLOCK_ROWS).to(tl.int64)[:, None]
    return row * _aligned(row_stride, ALIGNMENT) + tl.arange(0, BLOCK_COLS)[None, :]


@triton.jit
def _aligned(number, ALIGNMENT: tl.constexpr):
    """Return the number in a form that shows the compiler that it may load ALIGNMENT values at once."""
    return number // ALIGNMENT * ALIGNMENT


@triton.jit
def _channels_of(block, channels, CHANNELS_LAST: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Return the channels of a tile and their mask: [BLOCK_COLS] if channels-last, else [1]."""
    if CHANNELS_LAST:
        channel = block * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    else:
        channel = block + tl.arange(0, 1)
    return channel, channel < channels


@triton.jit
def _sum(values, CHANNELS_LAST: tl.constexpr):
    """Return the sum of a tile per channel."""
    columns = tl.sum(values, 0)
    if not CHANNELS_LAST:
        columns = tl.sum(columns, 0, keep_dims=True)
    return columns


@triton.jit
def _affine_of(mean, rstd, var, eps, weight, bias, group, channels, channel, valid):
    """Return mean, rstd, scale and bias of some channels of a group."""
    at = tl.cast(group, tl.int64) * channels + channel
    mean_value = tl.load(mean + at, valid, other=0.0).to(tl.float32)
    rstd_value = _load_rstd(rstd, var, eps, at, valid)
    return (
        mean_value,
        rstd_value,
        _scale_of(rstd_value, weight, channel, valid),
        _bias_of(rstd_value, bias, channel, valid),
    )


@triton.jit
def _load_rstd(rstd, var, eps, at, valid):
    """Return rstd at some offsets, computed from var and eps if rstd is None."""
    if rstd is None:
        return tl.rsqrt(tl.load(var + at, valid, other=1.0).to(tl.float32) + eps)
    else:
        return tl.load(rstd + at, valid, other=1.0)


@triton.jit
def _rstd_of(var, eps):
    """Return 1 / sqrt(var + eps), correctly rounded."""
    return tl.div_rn(1.0, tl.sqrt_rn(var + eps))


@triton.jit
def _scale_of(rstd, weight, channel, valid):
    if weight is None:
        return rstd
    else:
        return rstd * tl.load(weight + channel, valid, other=0.0).to(tl.float32)


@triton.jit
def _bias_of(rstd, bias, channel, valid):
    if bias is None:
        return tl.zeros_like(rstd)
    else:
        return tl.load(bias + channel, valid, other=0.0).to(tl.float32)


@triton.jit
def _add_residual(v, residual, mask):
    """Return v plus the tile that `residual` points to, or v if it is None."""
    if residual is None:
        return v
    else:
        return v + tl.load(residual, mask, other=0.0).to(tl.float32)


@triton.jit
def _activate(v, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    if ACTIVATION == "relu6":
        v = tl.clamp(v, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "hardswish":
        v *= tl.minimum(tl.maximum(v + 3, 0.0), 6.0) * (1 / 6)
    elif ACTIVATION != "leaky_relu":
        v *= _gate(v, ACTIVATION)
    elif NEGATIVE_SLOPE == 0:
        # Multiplying by a slope of 0 would turn -inf into NaN; a NaN fails the comparison and stays.
        v = tl.where(v <= 0, 0.0, v)
    elif NEGATIVE_SLOPE != 1:
        v = tl.where(v > 0, v, v * NEGATIVE_SLOPE)
    return v


@triton.jit
def _activation_gradient(dy, v, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    """Return g, with PyTorch's derivatives where an activation has a kink."""
    if ACTIVATION == "relu6":
        dy = tl.where((v <= 0) | (v >= 6), 0.0, dy)
    elif ACTIVATION == "hardswish":
        dy *= tl.where(v < 3, v * (1 / 3) + 0.5, 1.0)
        dy = tl.where(v <= -3, 0.0, dy)
    elif ACTIVATION != "leaky_relu":
        gate = _gate(v, ACTIVATION)
        # v comes first, because gate·(1 - gate) is 0 where v is large, and v times anything else may be infinite.
        slope = v * (gate * (1 - gate))
        if ACTIVATION == "gelu_tanh":
            # Where v² > 100, the factor before is 0 or almost; a larger v² may be infinite.
            slope *= GELU_SLOPE + 3 * GELU_CUBIC * tl.minimum(v * v, 100.0)
        dy *= gate + slope
    elif NEGATIVE_SLOPE == 0:
        dy = tl.where(v > 0, dy, 0.0)
    elif NEGATIVE_SLOPE != 1:
        dy = tl.where(v > 0, dy, dy * NEGATIVE_SLOPE)
    return dy


@triton.jit
def _gate(v, ACTIVATION: tl.constexpr):
    """Return SiLU or GELU divided by v."""
    if ACTIVATION == "gelu_tanh":
        v *= GELU_SLOPE + GELU_CUBIC * (v * v)
    return tl.sigmoid(v)


@triton.jit
def _load_gradient(
    x, dy, residual, mask, mean_value, scale, shift, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr
):
    """Return x - mean and g of the tile that x, dy and residual, which may be None, point to."""
    centered = tl.load(x, mask, other=0.0).to(tl.float32) - mean_value[None, :]
    dy_value = tl.load(dy, mask, other=0.0).to(tl.float32)
    v = _add_residual(centered * scale[None, :] + shift[None, :], residual, mask)
    return centered, _activation_gradient(dy_value, v, ACTIVATION, NEGATIVE_SLOPE)


@triton.jit
def _load_running(running_mean, running_var, channel, valid):
    """Return running mean and variance, or zeros if there are none."""
    zero = tl.zeros(channel.shape, tl.float32)
    if running_mean is None:
        return zero, zero
    else:
        mean = tl.load(running_mean + channel, valid, other=0.0).to(tl.float32)
        return mean, tl.load(running_var + channel, valid, other=0.0).to(tl.float32)


@triton.jit
def _updated(old_mean, old_var, mean, var, count, batches, momentum, group, groups):
    """Return old + momentum·(new - old) for mean and unbiased variance.

    Without a momentum the running statistics are the mean over all batches, and `batches` already counts these groups.
    """
    if momentum is not None:
        weight = momentum
    elif batches is not None:
        weight = 1.0 / (tl.load(batches) - groups + group + 1).to(tl.float32)
    else:
        weight = 0.0
    unbiased = var * (count / (count - 1))
    return old_mean + weight * (mean - old_mean), old_var + weight * (unbiased - old_var)


@triton.jit
def _store_running(running_mean, running_var, mean, var, channel, valid):
    if running_mean is not None:
        tl.store(running_mean + channel, mean, valid)
        tl.store(running_var + channel, var, valid)


@triton.jit
def _count_batches(batches, momentum, groups):
    """Add the groups to the count if there is a momentum.

    Otherwise other programs read it, and the launcher adds them.
    """
    if batches is not None:
        if momentum is not None:
            if tl.program_id(0) == 0:
                tl.store(batches, tl.load(batches) + groups)


@triton.jit
def statistics_kernel(
    x, partials, rows, cols, channels, splits, blocks, x_row, x_channel,
    CHANNELS_LAST: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write partials [groups, splits, 4, channels]: shift, sum and sum of squares of x - shift, number of values.

    Reads x once. Program s of a block of channels takes tiles s, s + splits, … The shift is the mean of the program's
    first tile: near enough to the overall mean that the squares lose no digits, and robust against an outlier.
    """
    split, block, group = _program_ids(splits, blocks, False)
    within = _tile_offsets(x_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    row, col = _tile_origin(split, block, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
    mask = _mask(row, col, rows, cols, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    start = _tile_pointer(x, group, row, col, block, rows, x_row, x_channel, CHANNELS_LAST, ALIGNMENT)
    values = tl.load(start + within, mask, other=0.0).to(tl.float32)
    count = _value_count(row, col, rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
    shift = _sum(values, CHANNELS_LAST) / count
    total = tl.where(mask, values - shift[None, :], 0.0)
    squares = total * total
    for tile in range(split + splits, _tile_count(rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS), splits):
        row, col = _tile_origin(tile, block, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
        mask = _mask(row, col, rows, cols, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        start = _tile_pointer(x, group, row, col, block, rows, x_row, x_channel, CHANNELS_LAST, ALIGNMENT)
        values = tl.load(start + within, mask, other=0.0).to(tl.float32)
        centered = tl.where(mask, values - shift[None, :], 0.0)
        total += centered
        squares += centered * centered
        count += _value_count(row, col, rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)

    channel, valid = _channels_of(block, channels, CHANNELS_LAST, BLOCK_COLS)
    at = partials + (group * splits + split) * 4 * channels + channel
    tl.store(at, shift, valid)
    tl.store(at + channels, _sum(total, CHANNELS_LAST), valid)
    tl.store(at + 2 * channels, _sum(squares, CHANNELS_LAST), valid)
    tl.store(at + 3 * channels, tl.zeros_like(shift) + count, valid)


@triton.jit(do_not_specialize=["count"])
def combine_statistics_kernel(
    partials, mean, rstd, var, running_mean, running_var, batches, momentum, eps, count, channels, splits, groups,
):  # fmt: skip
    """Write mean and rstd [groups, channels] of `count` values per channel and group, by Chan's formula for subsets.

    Writes var [groups, channels] instead if rstd is None. Means are relative to the first split's shift, so that no
    digits are lost when they are far from zero.
    """
    channel = tl.program_id(0) * COMBINED_CHANNELS + tl.arange(0, COMBINED_CHANNELS)
    valid = channel < channels
    old_mean, old_var = _load_running(running_mean, running_var, channel, valid)
    for group in range(groups):
        first = partials + tl.cast(group, tl.int64) * splits * 4 * channels + channel
        origin = tl.load(first, valid, other=0.0).to(tl.float64)
        totals = tl.zeros([COMBINED_SPLITS, COMBINED_CHANNELS], tl.float64)
        squares = tl.zeros([COMBINED_SPLITS, COMBINED_CHANNELS], tl.float64)
        for begin in range(0, splits, COMBINED_SPLITS):
            split = begin + tl.arange(0, COMBINED_SPLITS)
            mask = (split < splits)[:, None] & valid[None, :]
            at = first[None, :] + split[:, None].to(tl.int64) * 4 * channels
            shift = tl.load(at, mask, other=0.0).to(tl.float64)
            sums = tl.load(at + channels, mask, other=0.0).to(tl.float64)
            sums_of_squares = tl.load(at + 2 * channels, mask, other=0.0).to(tl.float64)
            counts = tl.load(at + 3 * channels, mask, other=0.0).to(tl.float64)
            # Shift the sums to the common origin o: sum(x - o) = s + n·(shift - o),
            # sum((x - o)²) = q + 2·s·(shift - o) + n·(shift - o)²
            step = tl.where(mask, shift - origin[None, :], 0.0)
            totals += sums + counts * step
            squares += sums_of_squares + (2 * sums + counts * step) * step
        number = count.to(tl.float64)
        offset = tl.sum(totals, 0) / number
        mean_value = (origin + offset).to(tl.float32)
        var_value = tl.maximum(tl.sum(squares, 0) / number - offset * offset, 0.0).to(tl.float32)
        at = tl.cast(group, tl.int64) * channels + channel
        tl.store(mean + at, mean_value, valid)
        if rstd is None:
            tl.store(var + at, var_value, valid)
        else:
            tl.store(rstd + at, _rstd_of(var_value, eps), valid)
        old_mean, old_var = _updated(
            old_mean, old_var, mean_value, var_value, number.to(tl.float32), batches, momentum, group, groups
        )
    _store_running(running_mean, running_var, old_mean, old_var, channel, valid)
    _count_batches(batches, momentum, groups)


@triton.jit
def normalize_kernel(
    x, y, residual, mean, rstd, var, eps, weight, bias, rows, cols, channels, splits, blocks,
    x_row, x_channel, y_row, y_channel, residual_row, residual_channel,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write y = act((x - mean)·scale + bias + residual), the last tiles first.

    Reads x and the residual, which may be None, and writes y once.
    """
    split, block, group = _program_ids(splits, blocks, True)
    channel, valid = _channels_of(block, channels, CHANNELS_LAST, BLOCK_COLS)
    mean_value, _, scale, shift = _affine_of(mean, rstd, var, eps, weight, bias, group, channels, channel, valid)
    within_x = _tile_offsets(x_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    within_y = _tile_offsets(y_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    tiles = _tile_count(rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
    for tile in range(split, tiles, splits):
        row, col = _tile_origin(tiles - 1 - tile, block, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
        mask = _mask(row, col, rows, cols, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        start = _tile_pointer(x, group, row, col, block, rows, x_row, x_channel, CHANNELS_LAST, ALIGNMENT)
        values = tl.load(start + within_x, mask, other=0.0).to(tl.float32)
        residual_tile = None
        if residual is not None:
            start = _tile_pointer(
                residual, group, row, col, block, rows, residual_row, residual_channel, CHANNELS_LAST, ALIGNMENT
            )
            residual_tile = start + _tile_offsets(residual_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        v = _add_residual((values - mean_value[None, :]) * scale[None, :] + shift[None, :], residual_tile, mask)
        start = _tile_pointer(y, group, row, col, block, rows, y_row, y_channel, CHANNELS_LAST, ALIGNMENT)
        tl.store(start + within_y, _activate(v, ACTIVATION, NEGATIVE_SLOPE), mask)


@triton.jit
def gradient_sums_kernel(
    x, dy, residual, dresidual, partials, mean, rstd, var, eps, weight, bias, rows, cols, channels, splits, blocks,
    x_row, x_channel, dy_row, dy_channel, residual_row, residual_channel, dresidual_row, dresidual_channel,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write partials [groups, splits, 2, channels]: sums of g and g·(x - mean). Reads x, dy and the residual once.

    Writes g as dresidual if there is a residual.
    """
    split, block, group = _program_ids(splits, blocks, False)
    channel, valid = _channels_of(block, channels, CHANNELS_LAST, BLOCK_COLS)
    mean_value, _, scale, shift = _affine_of(mean, rstd, var, eps, weight, bias, group, channels, channel, valid)
    within_x = _tile_offsets(x_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    within_dy = _tile_offsets(dy_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    sum_g = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    sum_gx = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for tile in range(split, _tile_count(rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS), splits):
        row, col = _tile_origin(tile, block, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
        mask = _mask(row, col, rows, cols, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        x_start = _tile_pointer(x, group, row, col, block, rows, x_row, x_channel, CHANNELS_LAST, ALIGNMENT)
        dy_start = _tile_pointer(dy, group, row, col, block, rows, dy_row, dy_channel, CHANNELS_LAST, ALIGNMENT)
        residual_tile = None
        if residual is not None:
            start = _tile_pointer(
                residual, group, row, col, block, rows, residual_row, residual_channel, CHANNELS_LAST, ALIGNMENT
            )
            residual_tile = start + _tile_offsets(residual_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        centered, g = _load_gradient(
            x_start + within_x, dy_start + within_dy, residual_tile, mask, mean_value, scale, shift,
            ACTIVATION, NEGATIVE_SLOPE,
        )  # fmt: skip
        if dresidual is not None:
            start = _tile_pointer(
                dresidual, group, row, col, block, rows, dresidual_row, dresidual_channel, CHANNELS_LAST, ALIGNMENT
            )
            tl.store(start + _tile_offsets(dresidual_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS), g, mask)
        sum_g += g
        sum_gx += g * centered

    at = partials + (group * splits + split) * 2 * channels + channel
    tl.store(at, _sum(sum_g, CHANNELS_LAST), valid)
    tl.store(at + channels, _sum(sum_gx, CHANNELS_LAST), valid)


@triton.jit
def combine_gradients_kernel(partials, sums, dweight, dbias, rstd, var, eps, channels, splits, groups):
    """Write sums [groups, 2, channels] of the partial sums, and dweight and dbias [channels] over all groups."""
    channel = tl.program_id(0) * COMBINED_CHANNELS + tl.arange(0, COMBINED_CHANNELS)
    valid = channel < channels
    dweight_value = tl.zeros([COMBINED_CHANNELS], tl.float64)
    dbias_value = tl.zeros([COMBINED_CHANNELS], tl.float64)
    for group in range(groups):
        first = partials + tl.cast(group, tl.int64) * splits * 2 * channels + channel
        totals_g = tl.zeros([COMBINED_SPLITS, COMBINED_CHANNELS], tl.float64)
        totals_gx = tl.zeros([COMBINED_SPLITS, COMBINED_CHANNELS], tl.float64)
        for begin in range(0, splits, COMBINED_SPLITS):
            split = begin + tl.arange(0, COMBINED_SPLITS)
            mask = (split < splits)[:, None] & valid[None, :]
            at = first[None, :] + split[:, None].to(tl.int64) * 2 * channels
            totals_g += tl.load(at, mask, other=0.0).to(tl.float64)
            totals_gx += tl.load(at + channels, mask, other=0.0).to(tl.float64)
        sum_g = tl.sum(totals_g, 0)
        sum_gx = tl.sum(totals_gx, 0)
        at = sums + tl.cast(group, tl.int64) * 2 * channels + channel
        tl.store(at, sum_g.to(tl.float32), valid)
        tl.store(at + channels, sum_gx.to(tl.float32), valid)
        rstd_value = _load_rstd(rstd, var, eps, tl.cast(group, tl.int64) * channels + channel, valid)
        dweight_value += sum_gx * rstd_value.to(tl.float64)
        dbias_value += sum_g
    if dweight is not None:
        tl.store(dweight + channel, dweight_value.to(tl.float32), valid)
    if dbias is not None:
        tl.store(dbias + channel, dbias_value.to(tl.float32), valid)


@triton.jit
def input_gradient_kernel(
    x, dy, dx, sums, mean, rstd, var, eps, weight, bias, inverse_count, rows, cols, channels, splits, blocks,
    x_row, x_channel, dy_row, dy_channel, dx_row, dx_channel,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write dx, the last tiles first; sums is None for constant statistics. Reads x and dy once and writes dx once.

    With a residual, dy is g, and the activation is the identity.
    """
    split, block, group = _program_ids(splits, blocks, True)
    channel, valid = _channels_of(block, channels, CHANNELS_LAST, BLOCK_COLS)
    mean_value, rstd_value, scale, shift = _affine_of(
        mean, rstd, var, eps, weight, bias, group, channels, channel, valid
    )
    # dx = scale·g - slope·(x - mean) - offset
    slope = tl.zeros_like(scale)
    offset = tl.zeros_like(scale)
    if sums is not None:
        at = sums + group * 2 * channels + channel
        offset = tl.load(at, valid, other=0.0) * inverse_count * scale
        slope = tl.load(at + channels, valid, other=0.0) * inverse_count * rstd_value * rstd_value * scale
    within_x = _tile_offsets(x_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    within_dy = _tile_offsets(dy_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    within_dx = _tile_offsets(dx_row, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
    tiles = _tile_count(rows, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
    for tile in range(split, tiles, splits):
        row, col = _tile_origin(tiles - 1 - tile, block, cols, CHANNELS_LAST, BLOCK_ROWS, BLOCK_COLS)
        mask = _mask(row, col, rows, cols, ALIGNMENT, BLOCK_ROWS, BLOCK_COLS)
        x_start = _tile_pointer(x, group, row, col, block, rows, x_row, x_channel, CHANNELS_LAST, ALIGNMENT)
        dy_start = _tile_pointer(dy, group, row, col, block, rows, dy_row, dy_channel, CHANNELS_LAST, ALIGNMENT)
        centered, g = _load_gradient(
            x_start + within_x, dy_start + within_dy, None, mask, mean_value, scale, shift, ACTIVATION, NEGATIVE_SLOPE
        )
        result = g * scale[None, :]
        if sums is not None:
            result -= centered * slope[None, :] + offset[None, :]
        start = _tile_pointer(dx, group, row, col, block, rows, dx_row, dx_channel, CHANNELS_LAST, ALIGNMENT)
        tl.store(start + within_dx, result, mask)


@triton.jit
def _locate_small(group, rows, inner, valid, BLOCK_ROWS: tl.constexpr):
    """Return sample and pixel of each row of a tile that holds all `rows` of a group, and the mask of its elements."""
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    first_sample = tl.cast(group, tl.int64) * (rows // inner)
    return first_sample + row // inner, (row % inner).to(tl.int64), (row < rows) & valid[None, :]


@triton.jit
def small_forward_kernel(
    x, y, residual, mean, rstd, weight, bias, running_mean, running_var, batches, momentum, eps, rows, inner, channels,
    groups, x_sample, x_pixel, x_channel, y_sample, y_pixel, y_channel,
    residual_sample, residual_pixel, residual_channel,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write y, mean and rstd of a block of channels, each group's values in one tile.

    Reads x and the residual, which may be None, and writes y once.
    """
    channel = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    valid = channel < channels
    wide = channel.to(tl.int64)[None, :]
    old_mean, old_var = _load_running(running_mean, running_var, channel, valid)
    for group in range(groups):
        sample, pixel, mask = _locate_small(group, rows, inner, valid, BLOCK_ROWS)
        offsets = sample * x_sample + pixel * x_pixel + wide * x_channel
        values = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
        # The mean is computed twice, because the first result is rounded.
        shift = tl.sum(values, 0) / rows
        centered = tl.where(mask, values - shift[None, :], 0.0)
        correction = tl.sum(centered, 0) / rows
        mean_value = shift + correction
        var_value = tl.maximum(tl.sum(centered * centered, 0) / rows - correction * correction, 0.0)
        old_mean, old_var = _updated(
            old_mean, old_var, mean_value, var_value, rows.to(tl.float32), batches, momentum, group, groups
        )
        rstd_value = _rstd_of(var_value, eps)
        at = tl.cast(group, tl.int64) * channels + channel
        tl.store(mean + at, mean_value, valid)
        tl.store(rstd + at, rstd_value, valid)
        scale = _scale_of(rstd_value, weight, channel, valid)
        v = (values - mean_value[None, :]) * scale[None, :] + _bias_of(rstd_value, bias, channel, valid)[None, :]
        if residual is not None:
            offsets = sample * residual_sample + pixel * residual_pixel + wide * residual_channel
            v = _add_residual(v, residual + offsets, mask)
        offsets = sample * y_sample + pixel * y_pixel + wide * y_channel
        tl.store(y + offsets, _activate(v, ACTIVATION, NEGATIVE_SLOPE), mask)
    _store_running(running_mean, running_var, old_mean, old_var, channel, valid)
    _count_batches(batches, momentum, groups)


@triton.jit
def small_backward_kernel(
    x, dy, dx, residual, dresidual, dweight, dbias, mean, rstd, weight, bias, rows, inner, channels, groups,
    x_sample, x_pixel, x_channel, dy_sample, dy_pixel, dy_channel, dx_sample, dx_pixel, dx_channel,
    residual_sample, residual_pixel, residual_channel, dresidual_sample, dresidual_pixel, dresidual_channel,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Write dx, dresidual, dweight and dbias of a block of channels, each group's values in one tile.

    Reads x, dy and the residual, which may be None, once.
    """
    dweight_value = tl.zeros([BLOCK_COLS], tl.float32)
    dbias_value = tl.zeros([BLOCK_COLS], tl.float32)
    channel = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    valid = channel < channels
    wide = channel.to(tl.int64)[None, :]
    for group in range(groups):
        mean_value, rstd_value, scale, shift = _affine_of(
            mean, rstd, None, None, weight, bias, group, channels, channel, valid
        )
        sample, pixel, mask = _locate_small(group, rows, inner, valid, BLOCK_ROWS)
        x_offsets = sample * x_sample + pixel * x_pixel + wide * x_channel
        dy_offsets = sample * dy_sample + pixel * dy_pixel + wide * dy_channel
        residual_tile = None
        if residual is not None:
            offsets = sample * residual_sample + pixel * residual_pixel + wide * residual_channel
            residual_tile = residual + offsets
        centered, g = _load_gradient(
            x + x_offsets, dy + dy_offsets, residual_tile, mask, mean_value, scale, shift, ACTIVATION, NEGATIVE_SLOPE
        )
        if dresidual is not None:
            offsets = sample * dresidual_sample + pixel * dresidual_pixel + wide * dresidual_channel
            tl.store(dresidual + offsets, g, mask)
        sum_g = tl.sum(g, 0)
        sum_gx = tl.sum(g * centered, 0)
        dweight_value += sum_gx * rstd_value
        dbias_value += sum_g
        if dx is not None:
            slope = sum_gx / rows * rstd_value * rstd_value
            g -= (sum_g / rows)[None, :] + centered * slope[None, :]
            offsets = sample * dx_sample + pixel * dx_pixel + wide * dx_channel
            tl.store(dx + offsets, g * scale[None, :], mask)
    if dweight is not None:
        tl.store(dweight + channel, dweight_value, valid)
    if dbias is not None:
        tl.store(dbias + channel, dbias_value, valid)
