"""Short checks of a device: its backends, and whether operations and iterations agree with float64.

    python -m benchmarks.check_device step --device cuda
    compute-sanitizer --tool memcheck python -m benchmarks.check_device operations --device cuda

Each result is printed as a line; the exit code is 1 if one is wrong. `benchmarks.validate` runs all checks first.
"""

import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import tyro

from benchmarks import accuracy, harness, result_files
from benchmarks import bench_step as bench
from benchmarks.contenders import CLIP_INTERVAL, NOTEBOOK, NOTEBOOK_FP32, TUNED
from benchmarks.suite import Run, choose_device
from tgan_fast.ops import adam_, augment_videos, backends, batch_norm_act, rmsprop_, singular_value_clip, tanh_to_levels
from tgan_fast.ops.clipping import CUDA_BACKENDS
from tgan_fast.ops.windows import read_windows

# Name of a check, and a function that returns a sentence on its result or raises an error.
Check = tuple[str, Callable[[], str]]


def environment(device: str) -> Iterator[Check]:
    """Yield the versions and the backends. A GPU must have all of them."""

    def backend(text):
        if device == "cuda" and text != "available":
            raise RuntimeError(text)
        return text

    described = {
        name: value for name, value in result_files.describe_environment(device).items() if name != "command" and value
    }
    yield "versions", lambda: ", ".join(f"{name} {value}" for name, value in described.items())
    for operation, states in backends().items():
        # On a GPU, the state of the backend "cpu" says only that it runs on a CPU.
        for name, text in states.items():
            if name != "cpu" or device == "cpu":
                yield f"{operation}: {name}", partial(backend, text)


def operations(device: str) -> Iterator[Check]:
    """Yield the errors of every kernel on small tensors, relative to PyTorch's operations in float64."""
    torch.manual_seed(0)
    own = "triton" if device == "cuda" else "auto"
    few, many = torch.randn(4, 24, 5, 5), torch.randn(16, 24, 20, 20)
    weight, bias = torch.rand(2, 24) + 0.5
    flat, frames, videos = torch.randn(3, 5000), torch.randint(256, (40, 20, 26, 3)), torch.randn(4, 3, 5, 16, 16)
    start, numbers = torch.tensor([[[[3, 1, 2, 1]]], [[[7, 4, 20, -1]]]]), torch.rand(4, 7)

    def batch_norm(backend, *tensors):
        x, weight, bias, residual = (tensor.requires_grad_() for tensor in tensors)
        y = batch_norm_act(x, weight, bias, residual=residual, activation="silu", backend=backend)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight, bias, residual))

    def rmsprop(backend, parameter, gradient, average):
        rmsprop_(parameter, gradient, average, learning_rate=1e-2, backend=backend)
        return parameter, average

    def adam(backend, parameter, gradient, average):
        square, number = average.square(), torch.ones((), device=parameter.device)
        adam_(parameter, gradient, average, square, number, learning_rate=1e-2, backend=backend)
        return parameter, average, square

    def windows(backend, frames):
        wanted = (start + torch.arange(16).view(16, 1) * torch.tensor([1, 0, 0, 0])).to(frames.device)
        return (read_windows(frames.byte(), wanted, image_size=16, backend=backend),)

    def augmentation(backend, videos):
        result = augment_videos(videos.requires_grad_(), numbers.to(videos.device), backend=backend)
        return result, *torch.autograd.grad(result.square().sum(), videos)

    def levels(backend, x):
        return (tanh_to_levels(x, backend).float(),)

    def clipping(backend, *weights):
        return [singular_value_clip(weight, backend="svd" if backend == "torch" else backend) for weight in weights]

    def error(operation, backend, allowed, tensors):
        truth = operation("torch", *(tensor.double() for tensor in tensors))
        got = operation(backend, *(tensor.to(device, copy=True) for tensor in tensors))
        found = accuracy.relative([tensor.cpu() for tensor in got], truth)
        if not found <= allowed:
            raise RuntimeError(f"off by {found:.1e} (allowed {allowed:.1e})")
        return f"off by {found:.1e}"

    for values, x in (("few", few), ("many", many)):
        for layout, memory_format in (("first", torch.contiguous_format), ("last", torch.channels_last)):
            tensors = [each.contiguous(memory_format=memory_format) for each in (x, torch.randn_like(x))]
            tensors = tensors[0], weight, bias, tensors[1]
            yield f"batch norm of {values} values, channels {layout}", partial(error, batch_norm, own, 1e-5, tensors)
    yield "rmsprop", partial(error, rmsprop, own, 1e-6, flat.abs())
    yield "adam", partial(error, adam, own, 1e-6, flat)
    yield "windows", partial(error, windows, own, 1e-6, [frames])
    yield "augmentation", partial(error, augmentation, own, 1e-6, [videos])
    # Rounding to float32 moves a few values to the next level.
    yield "levels", partial(error, levels, own, 1e-3, [flat[0]])
    weights = torch.randn(70, 150) / 10, torch.randn(33, 40), torch.randn(300, 64) / 8
    for backend in CUDA_BACKENDS if device == "cuda" else ("auto",):
        yield f"clipping, backend {backend}", partial(error, clipping, backend, 1e-7, weights)


def step(device: str) -> Iterator[Check]:
    """Yield the errors of iterations in every precision, without and with CUDA graphs, beside eager PyTorch's."""
    run = Run(device, smoke=device == "cpu")
    start, batches = bench.starting_point(run)
    count = bench.CHECKED[device]  # enough to replay the graphs
    exact = bench.exact_losses(start, batches, count)

    def errors_of(contender):
        return bench.errors_of(bench.iterate(contender, batches, count), exact)

    eager = {name: errors_of(bench.RIVALS[name](start)) for name in (NOTEBOOK, NOTEBOOK_FP32, TUNED)}

    def losses(precision, mode):
        error = errors_of(bench.Fast(start, precision, cuda_graph=mode))
        allowed = bench.allowed_errors(precision, eager)
        text = "losses off by {:.1e}, {:.1e} after {} iterations (allowed {:.1e}, {:.1e})"
        text = text.format(*error, count, *allowed)
        if not all(map(operator.le, error, allowed)):
            raise RuntimeError(text)
        return text

    def constraint(mode):
        contender = bench.Fast(start, harness.precisions_for(device)[0], CLIP_INTERVAL, cuda_graph=mode)
        # The constraint is applied three times; the later ones replay a graph.
        bench.iterate(contender, batches, 2 * CLIP_INTERVAL + 1)
        weights = [p for p in contender.step.discriminator.parameters() if p.dim() > 1]
        largest = max(torch.linalg.matrix_norm(p.flatten(1).double().cpu(), 2).item() for p in weights)
        if not largest <= 1 + 1e-5 or contender.step.non_finite.item():
            raise RuntimeError(f"a singular value is {largest:.6f}, or a weight is not finite")
        return f"largest singular value − 1: {largest - 1:.1e}"

    for mode in ("off", "on") if device == "cuda" else ("off",):
        for precision in harness.precisions_for(device):
            yield f"{precision}, CUDA graph {mode}", partial(losses, precision, mode)
        yield f"with clipping, CUDA graph {mode}", partial(constraint, mode)


CHECKS = {"environment": environment, "operations": operations, "step": step}


def main(
    check: Literal["environment", "operations", "step"], /, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> None:
    """Run one check and print a line for each result; exit with code 1 if one is wrong.

    Args:
        check: Name of the check.
        device: Device; auto is the GPU if there is one.
    """
    right = wrong = 0
    for name, result in CHECKS[check](choose_device(device)):
        try:
            print(f"ok     {name}: {result()}", flush=True)
            right += 1
        except Exception as error:
            traceback.print_exc()
            print(f"WRONG  {name}: {harness.short_reason(error)}", flush=True)
            wrong += 1
    print(f"{right} of {right + wrong} right")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    tyro.cli(main)
