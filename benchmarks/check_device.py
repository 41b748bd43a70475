"""Short checks of a device: its backends, and whether iterations agree with float64.

    python -m benchmarks.check_device step --device cuda

Each result is printed as a line; the exit code is 1 if one is wrong. `benchmarks.validate` runs both checks first.
"""

import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import tyro

from benchmarks import bench_step as bench
from benchmarks import harness, result_files
from benchmarks.contenders import CLIP_INTERVAL, NOTEBOOK, NOTEBOOK_FP32, TUNED
from benchmarks.suite import Run, choose_device
from tgan_fast.ops import backends

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
        # The backend "cpu" has no state on a GPU.
        for name, text in states.items():
            if name != "cpu" or device == "cpu":
                yield f"{operation}: {name}", partial(backend, text)


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


CHECKS = {"environment": environment, "step": step}


def main(check: Literal["environment", "step"], /, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
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
