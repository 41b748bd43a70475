"""Sampling clips: Sampler against the eager reference, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_sampling --device cuda

From latents to uint8 clips on the device, where all contenders have the same weights and take turns. First their levels
are compared with float64. On a GPU the floor of a batch is the sum over all layers of what takes longer, the operations
or the bytes, at the rates of a large matrix product and of a large copy.
"""

import time
from collections.abc import Callable
from typing import Literal

import torch
import tyro
from torch import nn

from benchmarks import floors, harness
from benchmarks.contenders import IN_GRAPH, NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, TUNED, cudnn_for
from benchmarks.harness import Goal, rounded
from tgan_fast import VideoGenerator, reference
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import Precision

LATENT_DIM, CHANNELS = 100, 3
COMPILED = "tuned, compiled"
RIVALS = {"cpu": (NOTEBOOK, TUNED), "cuda": (NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH, COMPILED)}
# Root mean square of levels. That of rounding to integers cannot exceed it.
ALWAYS_ALLOWED = 0.5
BATCH_SIZES = {"cpu": (16, 1), "cuda": (64, 16, 256)}
SMOKE_WIDTH, SMOKE_BATCH = 1 / 8, 2
INPUT_SETS = {"cpu": 1, "cuda": 8}
ROUNDS = {"cpu": 5, "cuda": 20}
# Calls after which a Sampler replays its graph.
WARM_UP = 4
DOWNLOADED = 32  # batches


class Eager:
    """The reference as its users sample from it, on a GPU in PyTorch's default arithmetic: TF32 in convolutions."""

    precision = "tf32"
    _chooses_algorithms = False

    def __init__(self, network: reference.Generator):
        self.network = network

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Clips uint8 [N, 16, 64, 64, C]."""
        with cudnn_for(self.precision, self._chooses_algorithms):
            return self._clips(latents)

    def _clips(self, latents):
        videos = self.network(latents).permute(0, 2, 3, 4, 1)
        return ((videos.float() + 1) * 127.5).round().to(torch.uint8).contiguous()


class StrictEager(Eager):
    """The same in float32."""

    precision = "fp32"


class Tuned(Eager):
    """Channels-last, bfloat16 autocast on a GPU, cuDNN's fastest algorithms."""

    _chooses_algorithms = True

    def __init__(self, network: reference.Generator):
        super().__init__(to_channels_last_(network))

    def _clips(self, latents):
        device = latents.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return super()._clips(latents)


class Compiled(Tuned):
    """The same through torch.compile."""

    def __init__(self, network: reference.Generator):
        super().__init__(network)
        self._compiled = torch.compile(super()._clips, dynamic=False)

    def _clips(self, latents):
        return self._compiled(latents)


CLASSES = {NOTEBOOK: Eager, NOTEBOOK_FP32: StrictEager, TUNED: Tuned, IN_GRAPH: Tuned, COMPILED: Compiled}


class Fast:
    """A Sampler, called as its rivals are."""

    def __init__(self, network: reference.Generator, batch_size: int, precision: Precision, device: str):
        generator = VideoGenerator(network.half / 256, LATENT_DIM, CHANNELS)
        generator.load_state_dict(network.state_dict())
        self.sampler = Sampler(generator.to(device), batch_size=batch_size, precision=precision)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Clips uint8 [N, 16, 64, 64, C], on a GPU of one batch and without the copy to the CPU."""
        return next(self.sampler.on_device(latents)) if latents.is_cuda else self.sampler(latents)


def fast(precision) -> str:
    """The name of the Sampler in an arithmetic."""
    return f"tgan_fast {precision}"


def make_network(width, device) -> reference.Generator:
    """Random weights, the statistics of a batch, and videos in which most levels occur."""
    torch.manual_seed(0)
    network = reference.Generator(width, LATENT_DIM, CHANNELS)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.momentum = 1.0
    tanh, network.model[-1] = network.model[-1], nn.Identity()
    with torch.no_grad():
        network.model[-2].weight /= network(draw_latents(4, LATENT_DIM, 1)).std()
    network.model[-1] = tanh
    return network.to(device).eval()


def copy_of(network, dtype=torch.float32) -> reference.Generator:
    """Another network with the same weights, in evaluation mode."""
    parameter = next(network.parameters())
    copied = reference.Generator(network.half / 256, LATENT_DIM, CHANNELS)
    copied.load_state_dict(network.state_dict())
    return copied.to(parameter.device, dtype).eval()


def makers_for(network, batch_size, precisions, rivals, device) -> dict[str, Callable]:
    """What makes each contender, tgan_fast in the first precision first."""
    own = {fast(p): lambda p=p: Fast(network, batch_size, p, device) for p in precisions}
    return own | {name: lambda name=name: CLASSES[name](copy_of(network)) for name in rivals}


def set_up(makers, network, latents, device) -> tuple[dict, dict[str, float], dict[str, str]]:
    """Contenders that run and are as accurate as they should be, their errors, and why others are left out."""
    exact = exact_levels(network, latents)
    contenders, errors, left_out = {}, {}, {}
    for name, make in makers.items():
        try:
            contender = make()
            errors[name] = rounded(max(error_of(contender(latents), exact) for _ in range(WARM_UP)))
            contenders[name] = contender
        except RuntimeError as error:
            if name not in CLASSES:
                raise
            left_out[name] = harness.first_line(error)
    for name in contenders:
        allowed = allowed_error(name, errors, device)
        if name not in CLASSES and not errors[name] <= allowed:
            raise SystemExit(
                f"error: {name} is off by {errors[name]} levels in float64, more than {allowed}: nothing is timed"
            )
    return contenders, errors, left_out


def exact_levels(network, latents) -> torch.Tensor:
    """[N, 16, 64, 64, C] in float64, not rounded."""
    with torch.no_grad():
        videos = copy_of(network, torch.float64)(latents.double())
    return (videos.permute(0, 2, 3, 4, 1) + 1) * 127.5


def error_of(clips, exact) -> float:
    """Root mean square of the levels' errors."""
    return (clips.double() - exact).square().mean().sqrt().item()


def allowed_error(name, errors, device) -> float:
    """Twice that of eager PyTorch in the same arithmetic, or what is always allowed."""
    eager = NOTEBOOK if device == "cpu" else SAME_ARITHMETIC[name.removeprefix(fast(""))]
    return max(ALWAYS_ALLOWED, 2 * errors.get(eager, 0.0))


def time_in_turns(contenders, batch_size, device, smoke) -> dict[str, harness.Timing]:
    """Seconds a batch."""
    latents = draw_latents(INPUT_SETS[device] * batch_size, LATENT_DIM, 2).to(device).split(batch_size)
    captured = (IN_GRAPH, COMPILED)
    plain = {name: "as its users run it" for name in contenders if name not in captured}
    return harness.measure(contenders, latents, device, 2 if smoke else ROUNDS[device], uncaptured=plain)


def floor_seconds(width, batch_size, precision, operations, copy) -> float:
    """Of a batch: for each layer its operations or its bytes, whichever takes longer; the last one writes levels."""
    size = 2 if precision == "bf16" else 4
    layers = [layer.needed() for layer in floors.layers(floors.GENERATOR, width) if layer.group != floors.BATCH_NORM]
    layers[-1] = layers[-1]._replace(outputs=layers[-1].outputs / size)
    return sum(layer.work(batch_size, size).seconds(operations, copy) for layer in layers)


def peak_bytes(make, latents) -> int:
    """The most memory in use on the GPU while a new contender is made and runs."""

    def run():
        contender = make()
        for _ in range(WARM_UP + 1):
            contender(latents)

    return harness.peak_bytes(run)


def time_download(contender, batch_size) -> float:
    """Seconds a batch from latents to clips on the CPU, of many batches in one call."""
    latents = draw_latents(DOWNLOADED * batch_size, LATENT_DIM, 3)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        contender.sampler(latents)
        seconds.append((time.perf_counter() - begin) / DOWNLOADED)
    return min(seconds[1:])


def compare(network, batch_size, precisions, rivals, ceilings, device, smoke) -> dict:
    """Check and time contenders on batches of one size; the record that goes into the file of results."""
    latents = draw_latents(batch_size, LATENT_DIM, 0).to(device)
    makers = makers_for(network, batch_size, precisions, rivals, device)
    contenders, errors, left_out = set_up(makers, network, latents, device)
    timings = time_in_turns(contenders, batch_size, device, smoke)
    own = fast(precisions[0])
    downloaded = None if device == "cpu" else time_download(contenders[own], batch_size)
    contenders.clear()
    floor = ceilings and floor_seconds(network.half / 256, batch_size, precisions[0], **ceilings)
    rows = [
        {
            "contender": name,
            **timing.record(),
            "videos_per_second": rounded(batch_size / timing.median),
            "ratio": rounded(timing.median / timings[own].median),
            "error": errors.get(name),
            "peak_bytes": peak_bytes(makers[name], latents) if device == "cuda" and name in (own, NOTEBOOK) else None,
        }
        for name, timing in timings.items()
    ]
    return {
        "batch_size": batch_size,
        "floor_seconds": floor and rounded(floor),
        "to_cpu_videos_per_second": downloaded and rounded(batch_size / downloaded),
        "contenders": rows,
        "left_out": left_out,
    }


def goals_for(cases, device) -> list[Goal]:
    """What the Sampler shall reach."""
    if device == "cpu":
        return []
    rows = {row["contender"]: row for row in cases[0]["contenders"]}
    own, notebook = next(iter(rows.values())), rows.get(NOTEBOOK)
    return [
        Goal("videos/s", own["videos_per_second"], 120_000, at_most=False),
        Goal("times as fast as the notebook", notebook and notebook["ratio"], 8, at_most=False),
    ]


def print_case(record) -> None:
    """Its lines of the table."""
    floor, arrived = record["floor_seconds"], record["to_cpu_videos_per_second"]
    print(f"\nbatch {record['batch_size']}", end="")
    print(f": floor {1e3 * floor:.3f} ms; {arrived:.0f} videos/s arrive on the CPU" if floor else "")
    for row in record["contenders"]:
        times = "".join(f"{1e3 * row[key]:10.3f}" for key in ("seconds", "p10", "p90"))
        error = "" if row["error"] is None else f"{row['error']:9.3f}"
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:9.3f} GB"
        print(f"  {row['contender']:24}{times}{row['videos_per_second']:11.1f}{row['ratio']:8.2f}{error}{memory}")
    for name, reason in record["left_out"].items():
        print(f"  {name:24}left out: {reason}")


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int | None = None,
    compiled: Literal["auto", "on", "off"] = "auto",
    smoke: bool = False,
) -> None:
    """Print tables and write them to benchmarks/results.

    Args:
        device: where to run.
        batch_size: clips in a batch, instead of several sizes.
        compiled: torch.compile takes part in the first size; auto: on a GPU only.
        smoke: only show that everything runs, with a narrow network, and write nothing.
    """
    sizes = [SMOKE_BATCH] if smoke else BATCH_SIZES[device] if batch_size is None else [batch_size]
    rivals = [name for name in RIVALS[device] if name != COMPILED]
    takes_part = device == "cuda" and not smoke if compiled == "auto" else compiled == "on"
    precisions = harness.precisions_for(device)
    print(f"{harness.device_name(device)}, torch {torch.__version__}")
    ceilings = None
    if device == "cuda":
        operations, copy = harness.matrix_product_rate(device, precisions[0]), harness.copy_bandwidth(device)
        ceilings = {"operations": rounded(operations), "copy": rounded(copy)}
        print(f"matrix product {operations / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s")
    print("ms a batch of clips on the device; videos/s; ratio: how many times as long as tgan_fast; error in levels")
    print(f"{'':26}{'ms':>10}{'p10':>10}{'p90':>10}{'videos/s':>11}{'ratio':>8}{'error':>9}")
    network, cases, path = make_network(SMOKE_WIDTH if smoke else 1.0, device), [], None
    for size in sizes:
        joined = rivals + [COMPILED] * (takes_part and not cases)
        cases.append(compare(network, size, precisions, joined, ceilings, device, smoke))
        print_case(cases[-1])
        goals = goals_for(cases, device)
        if not smoke:
            payload = {"ceilings": ceilings, "cases": cases, "goals": [goal.record() for goal in goals]}
            path = harness.write_results("sampling", payload, device)
    print("", *goals, sep="\n")
    if path is not None:
        print(f"written to {path}")


if __name__ == "__main__":
    tyro.cli(main)
