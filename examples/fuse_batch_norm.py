"""Batch norm and ReLU as one operation in a network of your own.

`convert_batch_norm` changes an existing network, here a discriminator like DCGAN's. `BatchNormAct2d` is for new code,
here a residual block. Parameters and state dicts stay the same as with `nn.BatchNorm2d`.

    python fuse_batch_norm.py

Takes 10 seconds on one CPU thread; uses a GPU if there is one. Prints how far the conversion changes outputs and
gradients (rounding), whether state dicts fit, and the time of a forward and backward pass before and after it. The
residual block is the same in both. On a CPU, convolutions take nearly all of the network's time, so batch norm and
activation are also timed alone.
"""

import copy

import torch
from torch import nn
from torch.utils.benchmark import Timer

from tgan_fast.nn import BatchNormAct2d, convert_batch_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = BatchNormAct2d(width)  # nn.BatchNorm2d and nn.ReLU
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = BatchNormAct2d(width, negative_slope=1)  # a slope of 1: no activation before the sum

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(self.norm1(self.conv1(x)))))


torch.manual_seed(148)  # no activation's input is so close to 0 that rounding changes its sign, and a gradient's mask
layers, channels = [], 3
for width in (16, 32, 64):
    layers += [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    channels = width
network = nn.Sequential(*layers, ResidualBlock(channels), nn.Conv2d(channels, 1, 8))
network = network.to(DEVICE, memory_format=torch.channels_last)  # the fast layout on GPUs and CPUs
fused = convert_batch_norm(copy.deepcopy(network))

images = torch.randn(16, 3, 64, 64, device=DEVICE).to(memory_format=torch.channels_last)
results = []
for model in (network, fused):
    output = model(images)
    results.append([output, *torch.autograd.grad(output.square().mean(), list(model.parameters()))])
errors = [((after - before).norm() / before.norm()).item() for before, after in zip(*results, strict=True)]
print(f"relative difference: output {errors[0]:.1e}, largest of {len(errors) - 1} gradients {max(errors[1:]):.1e}")
print(f"state dict: {fused.load_state_dict(network.state_dict())}")

inside = network[0](images).detach().requires_grad_()
for what, part, x in (("batch norm + LeakyReLU", slice(1, 3), inside), ("whole network", slice(None), images)):
    for name, model in (("before", network[part]), ("after", fused[part])):
        options = {"globals": {"model": model, "x": x}, "num_threads": torch.get_num_threads()}
        timer = Timer("model(x).sum().backward()", **options)
        print(f"{what} {name}: {timer.blocked_autorange(min_run_time=1).median * 1e3:.2f} ms")
