"""Short checks of what the package computes on a device, against float64.

    python -m benchmarks.checks step --device cuda

Each result is a line; exit code 1 if one is wrong. `benchmarks.validate` runs all checks.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks import bench_batch_norm_act, bench_sampling, bench_singular_value_clip, bench_step, harness, results
from benchmarks.contenders import NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, TUNED, Start
from benchmarks.device_state import gpu_reader
from benchmarks.suite import Run, resolve_device
from tgan_fast.files import write_atomically
from tgan_fast.models.sampling import draw_latents
from tgan_fast.ops import backends
from tgan_fast.ops.singular_value_clip import choose

# The name of a result, and a function that returns a sentence about it or raises an error that says what is wrong.
Result = tuple[str, Callable[[], str]]
Name = Literal["environment", "backends", "step", "clipping", "batch-norm", "sampling"]


class WrongError(Exception):
    """A wrong result; the message says what is wrong."""


def environment(device: str) -> Iterator[Result]:
    """Yield the machine, the versions, and whether the device computes at all."""

    def versions():
        described = results.describe(device)
        del described["command"]
        return ", ".join(f"{name} {value}" for name, value in described.items() if value is not None)

    def clocks():
        read = gpu_reader() if device == "cuda" else None
        return "unknown" if read is None else str(read())

    def product():
        x = torch.rand(64, 64, dtype=torch.float64)
        if not torch.allclose((x.to(device) @ x.to(device)).cpu(), x @ x):
            raise WrongError("a matrix product differs from the CPU's")
        return "a matrix product equals the CPU's"

    yield "versions", versions
    yield "clocks and power", clocks
    yield "device", product


def backends_of(device: str) -> Iterator[Result]:
    """Yield the backends. A GPU must have all of them; a CPU may lack those for GPUs."""

    def state(operation, backend, text):
        if device == "cuda" and text != "available":
            raise WrongError(text)
        return text

    def chosen():
        (name,) = choose([torch.zeros(8, 64, device=device)], "auto")
        expected = {"cuda": "cuda", "cpu": "eigh"}[device]
        if name != expected:
            raise WrongError(f"auto takes {name}, not {expected}")
        return f"auto takes {name}"

    for operation, states in backends().items():
        for backend, text in states.items():
            yield f"{operation}: {backend}", partial(state, operation, backend, text)
    yield "singular value clipping", chosen


def step(device: str) -> Iterator[Result]:
    """Yield the errors of iterations in every precision, without and with CUDA graphs, beside eager PyTorch's."""
    run = Run(device, smoke=device == "cpu")
    start = Start.random(device, bench_step.width_of(run))
    batches = bench_step.make_batches(bench_step.cases_for(run)[0].batch_size, device)
    # Longer than it takes until the graphs are replayed.
    count = bench_step.CHECKED[device]
    exact = bench_step.exact_losses(start, batches, count)

    def errors_of(contender):
        return bench_step.Errors.of(torch.stack(bench_step.iterate(contender, batches, count)), exact)

    eager = {name: errors_of(bench_step.RIVALS[name](start)) for name in (NOTEBOOK, NOTEBOOK_FP32, TUNED)}

    def losses(precision, mode):
        error = errors_of(bench_step.Fast(start, precision, cuda_graph=mode))
        wrong = bench_step.disagreement(error, precision, eager)
        if wrong is not None:
            raise WrongError(wrong)
        own = eager[SAME_ARITHMETIC[precision]]
        return (
            f"losses off by {error.first:.1e}, {error.drift:.1e} after {count} iterations "
            f"(eager PyTorch {own.first:.1e}, {own.drift:.1e})"
        )

    def constraint(mode):
        contender = bench_step.Fast(start, harness.precisions_for(device)[0], bench_step.CYCLE, cuda_graph=mode)
        # The constraint is applied three times; the later ones replay a graph.
        bench_step.iterate(contender, batches, 2 * bench_step.CYCLE + 1)
        if contender.step.non_finite.item():
            raise WrongError("a weight is not finite")
        weights = [p for p in contender.step.discriminator.parameters() if p.dim() > 1]
        largest = max(torch.linalg.matrix_norm(p.flatten(1).double().cpu(), 2).item() for p in weights)
        if not largest <= 1 + 1e-5:
            raise WrongError(f"a singular value is {largest:.6f}")
        return f"largest singular value − 1: {largest - 1:.1e}"

    modes = ("off", "on") if device == "cuda" else ("off",)
    for precision in harness.precisions_for(device):
        for mode in modes:
            yield f"{precision}, CUDA graph {mode}", partial(losses, precision, mode)
    for mode in modes:
        yield f"with clipping, CUDA graph {mode}", partial(constraint, mode)


def clipping(device: str) -> Iterator[Result]:
    """Yield the error of every backend on the discriminator's five weights, at most twice that of PyTorch's SVD."""
    bench = bench_singular_value_clip
    contenders = bench.contenders_for(device)

    def accuracy(case, name):
        torch.manual_seed(0)
        found, left_out = bench.check(
            case, {name: contenders[name], "svd": contenders["svd"]}, bench.make_inputs(case, device)
        )
        if name in left_out:
            raise WrongError(left_out[name])
        return f"off by {found[name].error:.1e} (SVD {found['svd'].error:.1e}), σ − 1: {found[name].excess:.1e}"

    cases = bench.SMOKE if device == "cpu" else bench.cases_for(Run(device))[: len(bench.STATES)]
    for case in cases:
        for name in contenders:
            if not bench.is_rival(name):
                yield f"{case}: {name}", partial(accuracy, case, name)


def batch_norm(device: str) -> Iterator[Result]:
    """Yield the errors of forward and backward for four shapes, at most twice those of eager PyTorch."""
    bench = bench_batch_norm_act
    dtype, batch = (torch.bfloat16, 32) if device == "cuda" else (torch.float32, 1)
    last, first = (bench.images(batch, dtype, channels_last=layout) for layout in (True, False))

    def accuracy(case):
        torch.manual_seed(0)
        contenders = bench.contenders_for(case, device)
        found, _ = bench.check(case, contenders, bench.scale_and_shift(case, device), device)
        texts = {name: ", ".join(f"{error:.1e}" for error in found[name].values()) for name in (bench.OURS, "eager")}
        return f"off by {texts[bench.OURS]} (eager PyTorch {texts['eager']})"

    for case in (last[0], first[-1], bench.discriminator(batch, dtype)[0], bench.vectors(batch, dtype)[-1]):
        yield str(case), partial(accuracy, case)


def sampling(device: str) -> Iterator[Result]:
    """Yield the error of clips of every precision against the unfolded generator, also after the copy to the CPU."""
    bench = bench_sampling
    run = Run(device, smoke=device == "cpu")
    batch_size = bench.cases_for(run)[0].batch_size
    network = bench.make_network(bench.SMOKE_WIDTH if run.smoke else 1.0, device)
    latents = draw_latents(batch_size, bench.LATENT_DIM, 0).to(device)

    def accuracy(precision):
        eager = NOTEBOOK if device == "cpu" else SAME_ARITHMETIC[precision]
        makers = bench.makers_for(network, batch_size, [precision], [eager], device)
        contenders, errors, _ = bench.set_up(makers, network, latents, device)
        own = contenders[bench.fast(precision)]
        if not torch.equal(own.sampler(latents), own(latents).cpu()):
            raise WrongError("clips copied to the CPU differ from those on the device")
        return f"off by {errors[bench.fast(precision)]} levels of 256 (eager PyTorch {errors.get(eager)})"

    for precision in harness.precisions_for(device):
        yield precision, partial(accuracy, precision)


CHECKS: dict[Name, Callable[[str], Iterator[Result]]] = {
    "environment": environment,
    "backends": backends_of,
    "step": step,
    "clipping": clipping,
    "batch-norm": batch_norm,
    "sampling": sampling,
}


def main(check: Name, /, device: Literal["auto", "cpu", "cuda"] = "auto", out: Path | None = None) -> None:
    """Run one check and print a line for each result; exit with code 1 if one is wrong.

    Args:
        check: Name of the check.
        device: Device; auto is the GPU if there is one.
        out: File for the results: a JSON list of objects with name, ok and text.
    """
    found = []
    for name, result in CHECKS[check](resolve_device(device)):
        try:
            ok, text = True, result()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            ok, text = False, harness.first_line(error).removeprefix("error: ")
        found.append({"name": name, "ok": ok, "text": text})
        print(f"{'ok    ' if ok else 'WRONG '} {name}: {text}", flush=True)
        if out is not None:
            # After each one, since the next may crash the process.
            write_atomically(out, json.dumps(found).encode())
    sys.exit(not all(result["ok"] for result in found))


if __name__ == "__main__":
    tyro.cli(main)
