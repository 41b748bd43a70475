"""Inputs of batch norm, and memory layouts of them."""

import torch

EPS = 1e-5


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {"channels-first": torch.Tensor.contiguous, "channels-last": channels_last}


def every_second_sample(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], 1).flatten(0, 1)[::2]


def inner_channels(x):
    padding = torch.full_like(x[:, :1], torch.nan)
    return torch.cat([padding, x, padding], 1)[:, 1:-1]


def inner_channels_last(x):
    padding = torch.full_like(x[:, :1], torch.nan)
    return channels_last(torch.cat([padding, x, padding], 1))[:, 1:-1]


def every_second_pixel(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]


def transposed(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


VIEWS = {
    "every-second-sample": every_second_sample,
    "inner-channels": inner_channels,
    "inner-channels-last": inner_channels_last,
    "every-second-pixel": every_second_pixel,
    "transposed": transposed,
}


def values(shape, dtype, device):
    return (torch.randn(shape, device=device) * 2 + 3).to(dtype)


def parameters(channels, device):
    return torch.rand(channels, device=device) + 0.5, torch.randn(channels, device=device)


def running(channels, device):
    return torch.zeros(channels, device=device), torch.ones(channels, device=device)
