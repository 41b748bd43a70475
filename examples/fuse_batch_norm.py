"""Batch norm, residual addition and activation as one operation in a network of your own.

`fuse_batch_norm` changes an existing network, here one like ResNet. `BatchNormAct2d` is for new code. Parameters and
state dicts stay the same as with `nn.BatchNorm2d`.

    python fuse_batch_norm.py

Takes 15 seconds on one CPU thread; uses a GPU if there is one. Prints what is fused, how far that changes outputs and
gradients (rounding, which moves a few values across zero, where ReLU's slope jumps), whether state dicts fit, and the
time of a forward and backward pass before and after it.
"""

import copy

import torch
from torch import nn
from torch.utils.benchmark import Timer

from tgan_fast.nn import BatchNormAct2d, fuse_batch_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


torch.manual_seed(0)
stem = nn.Conv2d(3, 64, 3, padding=1, bias=False), BatchNormAct2d(64, activation="silu")
network = nn.Sequential(*stem, ResidualBlock(64), ResidualBlock(64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
network = network.to(DEVICE, memory_format=torch.channels_last)  # the fast layout on GPUs and CPUs
fused = copy.deepcopy(network)
print(fuse_batch_norm(fused))

images = torch.randn(16, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
results = []
for model in (network, fused):
    output = model(images)
    gradients = torch.autograd.grad(output.square().mean(), list(model.parameters()))
    results.append((output, torch.cat([gradient.flatten() for gradient in gradients])))
errors = [((after - before).norm() / before.norm()).item() for before, after in zip(*results, strict=True)]
print("relative difference: output {:.1e}, gradient {:.1e}".format(*errors))
print(f"state dict: {fused.load_state_dict(network.state_dict())}")

for name, model in (("before", network), ("after", fused)):
    options = {"globals": {"model": model, "x": images}, "num_threads": torch.get_num_threads()}
    timer = Timer("model(x).sum().backward()", **options)
    print(f"{name}: {timer.blocked_autorange(min_run_time=2).median * 1e3:.2f} ms")
