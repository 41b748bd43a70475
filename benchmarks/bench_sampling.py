"""Sampling clips: Sampler against the eager reference, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_sampling --device cuda

From latents to uint8 clips on the device, where all contenders have the same weights and take turns. First their levels
are compared with float64. The floor of a batch is the sum over all layers of what takes longer, the operations or the
bytes, at the rates of a large matrix product and of a large copy; it is that of the arithmetic in which a Sampler
computes, and of no rival.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import floors, harness, suite
from benchmarks.ceilings import Work
from benchmarks.contenders import IN_GRAPH, NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, TUNED, cudnn_for
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast import VideoGenerator, reference
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import Precision

LATENT_DIM, CHANNELS = 100, 3
COMPILED = "tuned, compiled"
RIVALS = {"cpu": (NOTEBOOK, TUNED), "cuda": (NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH)}
# Root mean square of levels. That of rounding to integers cannot exceed it.
ALWAYS_ALLOWED = 0.5
# Likewise; several times what computing in bfloat16 leads to. A rival that is off by more computes something else.
FAR = 5.0
BATCH_SIZES = {"cpu": (8, 1), "cuda": (64, 16, 256)}
SMOKE_WIDTH, SMOKE_BATCH = 1 / 8, 2
INPUT_SETS = {"cpu": 1, "cuda": 8}
# Calls after which a Sampler replays its graph; a CPU has none.
WARM_UP = {"cpu": 1, "cuda": 4}
DOWNLOADED = 32  # batches
VIDEOS_PER_SECOND, TIMES_THE_NOTEBOOK = 120_000, 8  # goals, at a GPU's first batch size


class Case(NamedTuple):
    """What is measured."""

    batch_size: int
    compiled: bool = False  # torch.compile takes part

    def __str__(self):
        return f"batch {self.batch_size}"

    def rivals(self, device: str) -> list[str]:
        """Names of what is plain PyTorch."""
        return [*RIVALS[device], *([COMPILED] if self.compiled else [])]


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


def cases_for(run: Run) -> list[Case]:
    """What is measured, the most important first; only there, and on a GPU, is time for torch.compile."""
    if run.smoke:
        return [Case(SMOKE_BATCH)]
    first, *others = BATCH_SIZES[run.device]
    # Nobody's accuracy is judged by torch.compile's: where it is not timed, it need not compile.
    return [Case(first, compiled=run.device == "cuda" and not run.own_only), *map(Case, others)]


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
    """Contenders that run and are as accurate as they should be, their errors, and why others are left out.

    Raises:
        SystemExit: a Sampler is less accurate than it should be.
    """
    exact = exact_levels(network, latents)
    contenders, errors, left_out = {}, {}, {}
    for name, make in makers.items():
        try:
            contender = make()
            errors[name] = rounded(max(error_of(contender(latents), exact) for _ in range(WARM_UP[device])))
            contenders[name] = contender
        except RuntimeError as error:
            if name not in CLASSES:
                raise
            left_out[name] = harness.first_line(error)
    for name in [name for name in contenders if name in CLASSES and not errors[name] <= FAR]:
        left_out[name] = f"off by {errors.pop(name)} levels in float64"
        del contenders[name]
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


def time_in_turns(run, contenders, batch_size) -> dict[str, Timing]:
    """Seconds a batch."""
    latents = draw_latents(INPUT_SETS[run.device] * batch_size, LATENT_DIM, 2).to(run.device).split(batch_size)
    captured = (IN_GRAPH, COMPILED)
    plain = {name: "as its users run it" for name in contenders if name not in captured}
    return run.measure(contenders, latents, rivals=CLASSES, uncaptured=plain)


def layers_work(width, batch_size, precision) -> list[Work]:
    """Of a batch; the last layer writes levels."""
    size = 2 if precision == "bf16" else 4
    layers = [layer.needed() for layer in floors.layers(floors.GENERATOR, width) if layer.group != floors.BATCH_NORM]
    layers[-1] = layers[-1]._replace(outputs=layers[-1].outputs / size)
    return [layer.work(batch_size, size) for layer in layers]


def floor_seconds(run, width, batch_size, precision) -> float:
    """Of a batch: for each layer its operations or its bytes, whichever takes longer."""
    return sum(run.ceilings.floor(work, precision) for work in layers_work(width, batch_size, precision))


def peak_bytes(make, latents) -> int:
    """The most memory in use on the GPU while a new contender is made and runs."""

    def run():
        contender = make()
        for _ in range(WARM_UP["cuda"] + 1):
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


def measure(run: Run, case: Case) -> dict:
    """Check and time contenders on batches of one size."""
    width = SMOKE_WIDTH if run.smoke else 1.0
    network, precisions = make_network(width, run.device), harness.precisions_for(run.device)
    latents = draw_latents(case.batch_size, LATENT_DIM, 0).to(run.device)
    makers = makers_for(network, case.batch_size, precisions, case.rivals(run.device), run.device)
    contenders, errors, left_out = set_up(makers, network, latents, run.device)
    timings = time_in_turns(run, contenders, case.batch_size)
    own = fast(precisions[0])
    downloaded = time_download(contenders[own], case.batch_size) if run.device == "cuda" else None
    contenders.clear()
    peaks = {}
    if run.device == "cuda":
        peaks = {name: peak_bytes(makers[name], latents) for name in (own, NOTEBOOK) if name in timings}
    least = {fast(precision): floor_seconds(run, width, case.batch_size, precision) for precision in precisions}
    least[harness.again(own)] = least[own]

    def more(name):
        seconds = timings[name].median
        figures = {
            "error": errors.get(name),
            "videos_per_second": rounded(case.batch_size / seconds),
            "peak_bytes": peaks.get(name),
        }
        if name in least:
            figures |= {"floor_seconds": rounded(least[name]), "share_of_floor": rounded(least[name] / seconds)}
        return figures

    return {
        "batch_size": case.batch_size,
        "to_cpu_videos_per_second": downloaded and rounded(case.batch_size / downloaded),
        "timings": run.rows(timings, more=more),
        "left_out": left_out,
    }


def labels_for(run: Run, case: Case) -> list[Label]:
    """Of a case's timings."""
    own = [fast(precision) for precision in harness.precisions_for(run.device)]
    return [Label(name) for name in (*own, *case.rivals(run.device), harness.again(own[0]))]


def details(record: dict) -> Iterator[str]:
    """Videos a second, and on a GPU memory."""
    rows = record["timings"]
    yield "  videos/s: " + ", ".join(f"{row['contender']} {row['videos_per_second']:.1f}" for row in rows)
    if record["to_cpu_videos_per_second"] is not None:
        yield f"  {record['to_cpu_videos_per_second']:.0f} videos/s of {rows[0]['contender']} arrive on the CPU"
    for row in rows:
        if row["peak_bytes"] is not None:
            yield f"  {row['contender']} takes {row['peak_bytes'] / 1e9:.3f} GB"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """What the Sampler shall reach."""
    if device == "cpu":
        return []
    first = BATCH_SIZES[device][0]
    rows = next((record["timings"] for record in records if record["batch_size"] == first), [])
    own = rows[0]["videos_per_second"] if rows else None
    notebook = next((row["ratio"] for row in rows if row["contender"] == NOTEBOOK), None)
    return [
        Goal(f"videos/s, batch {first}", own, VIDEOS_PER_SECOND, at_most=False),
        Goal(f"times as fast as the notebook, batch {first}", notebook, TIMES_THE_NOTEBOOK, at_most=False),
    ]


SECTION = Section(
    name="sampling",
    title="batches of clips on the device; error in levels of 256",
    cases=cases_for,
    measure=measure,
    details=details,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
