"""Sampling clips: Sampler against the eager reference, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_sampling --device cuda

From latents to uint8 clips on the device, where all contenders have the same weights and take turns. First their levels
are compared with float64. The floor of a batch is the sum over all layers of what takes longer, the operations or the
bytes, at the rates of a large matrix product and of a large copy; it is that of the arithmetic in which a Sampler
computes, and of no rival.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import accuracy, floors, harness, suite
from benchmarks.bench_step import fast
from benchmarks.contenders import IN_GRAPH, NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, TUNED, cudnn_for
from benchmarks.results import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast import VideoGenerator, reference
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import Precision

LATENT_DIM, CHANNELS = 100, 3
COMPILED = "tuned, compiled"
# How users of plain PyTorch sample, by name: what `plain` takes.
RIVALS = {
    NOTEBOOK: {},
    NOTEBOOK_FP32: {"precision": "fp32"},
    TUNED: {"tuned": True},
    IN_GRAPH: {"tuned": True},
    COMPILED: {"tuned": True, "compiled": True},
}
# Root mean square of levels. That of rounding to integers cannot exceed it.
ALWAYS_ALLOWED = 0.5
# Likewise; several times what computing in bfloat16 leads to. A rival that is off by more computes something else.
FAR = 5.0
BATCH_SIZES = {"cpu": (8, 1), "cuda": (64, 16, 256)}
SMOKE_WIDTH, SMOKE_BATCH = 1 / 8, 2
INPUT_SETS = {"cpu": 1, "cuda": 8}
# Calls after which a Sampler replays its graph; a CPU has none.
WARM_UP = {"cpu": 1, "cuda": 4}


class Case(NamedTuple):
    """Batches of a size, and what is plain PyTorch."""

    batch_size: int
    rivals: tuple[str, ...]

    def __str__(self):
        return f"batch {self.batch_size}"


def plain(network: reference.Generator, precision: str = "tf32", tuned: bool = False, compiled: bool = False):
    """Return a function from latents to clips uint8 [N, 16, 64, 64, C] as users of the reference have it on a GPU.

    Args:
        precision: Precision of convolutions: TF32 is PyTorch's default.
        tuned: Compute channels-last, in bfloat16 autocast and with cuDNN's fastest algorithms.
        compiled: Use torch.compile.
    """
    network = to_channels_last_(network) if tuned else network

    def clips(latents):
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=tuned and latents.is_cuda):
            return _levels(network(latents).float()).round().to(torch.uint8).contiguous()

    clips = torch.compile(clips, dynamic=False) if compiled else clips

    @torch.no_grad()
    def sample(latents):
        with cudnn_for(precision, chooses_algorithms=tuned):
            return clips(latents)

    return sample


def _levels(videos):
    """Videos [N, C, T, H, W] in [-1, 1] → levels [N, T, H, W, C] that are not rounded."""
    return (videos.permute(0, 2, 3, 4, 1) + 1) * 127.5


class Fast:
    """A Sampler, called as its rivals are."""

    def __init__(self, network: reference.Generator, batch_size: int, precision: Precision, device: str):
        generator = VideoGenerator(network.half / 256, LATENT_DIM, CHANNELS)
        generator.load_state_dict(network.state_dict())
        self.sampler = Sampler(generator.to(device), batch_size=batch_size, precision=precision)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return clips uint8 [N, 16, 64, 64, C], on a GPU of one batch and without the copy to the CPU."""
        return next(self.sampler.on_device(latents)) if latents.is_cuda else self.sampler(latents)


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first; only there, and on a GPU, is time for torch.compile."""
    # On a CPU all is float32.
    rivals = (NOTEBOOK, TUNED) if run.device == "cpu" else (NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH)
    first, *others = (SMOKE_BATCH,) if run.smoke else BATCH_SIZES[run.device]
    # Nobody's accuracy is judged by torch.compile's: where it is not timed, it need not compile.
    compiled = (COMPILED,) if run.device == "cuda" and not (run.smoke or run.own_only) else ()
    return [Case(first, rivals + compiled), *(Case(size, rivals) for size in others)]


def make_network(width: float, device: str) -> reference.Generator:
    """Return a network with random weights, the statistics of a batch, and videos in which most levels occur."""
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


def copy_of(network: reference.Generator, dtype: torch.dtype = torch.float32) -> reference.Generator:
    """Return another network with the same weights, in evaluation mode."""
    return copy.deepcopy(network).to(dtype).eval()


def makers_for(network, batch_size, precisions, rivals, device) -> dict[str, Callable]:
    """Return what makes each contender, tgan_fast in the first precision first."""
    own = {fast(precision): partial(Fast, network, batch_size, precision, device) for precision in precisions}
    return own | {name: partial(plain, copy_of(network), **RIVALS[name]) for name in rivals}


def set_up(makers, network, latents, device) -> tuple[dict, dict[str, float], dict[str, str]]:
    """Return contenders that run and are accurate, their errors in levels, and why others are left out.

    Raises:
        SystemExit: A Sampler is less accurate than it should be.
    """
    with torch.no_grad():
        exact = _levels(copy_of(network, torch.float64)(latents.double()))
    contenders = {}

    def clips_of(name):
        contender = makers[name]()
        clips = [contender(latents) for _ in range(WARM_UP[device])]
        contenders[name] = contender
        return clips

    def error_of(clips):
        """The largest root mean square of the levels' errors."""
        return rounded(max((each.double() - exact).square().mean().sqrt().item() for each in clips))

    def allowed(name, errors):
        if name in RIVALS:
            return FAR
        eager = errors.get(NOTEBOOK if device == "cpu" else SAME_ARITHMETIC[name.removeprefix(fast(""))], 0.0)
        # What is left out excuses nothing.
        return max(ALWAYS_ALLOWED, 2 * eager if eager <= FAR else 0.0)

    calls = {name: partial(clips_of, name) for name in makers}
    errors, left_out = accuracy.check(f"batch {len(latents)}", calls, error_of, allowed, RIVALS)
    return {name: contenders[name] for name in errors}, errors, left_out


def floor_seconds(run: Run, width: float, batch_size: int, precision: Precision) -> float:
    """Return the floor of a batch: for each layer its operations or its bytes, whichever takes longer."""
    size = 2 if precision == "bf16" else 4
    layers = [layer.needed() for layer in floors.layers(floors.GENERATOR, width) if layer.group != floors.BATCH_NORM]
    # The last layer writes levels.
    layers[-1] = layers[-1]._replace(outputs=layers[-1].outputs / size)
    return sum(run.ceilings.floor(layer.work(batch_size, size), precision) for layer in layers)


def measure(run: Run, case: Case) -> dict:
    """Check and time contenders on batches of one size."""
    width, precisions = SMOKE_WIDTH if run.smoke else 1.0, harness.precisions_for(run.device)
    network, size, own = make_network(width, run.device), case.batch_size, fast(precisions[0])
    latents = draw_latents(size, LATENT_DIM, 0).to(run.device)
    makers = makers_for(network, size, precisions, case.rivals, run.device)
    contenders, errors, left_out = set_up(makers, network, latents, run.device)
    timings = run.measure(
        contenders,
        draw_latents(INPUT_SETS[run.device] * size, LATENT_DIM, 2).to(run.device).split(size),
        rivals=RIVALS,
        uncaptured={name: "as its users run it" for name in contenders if name not in (IN_GRAPH, COMPILED)},
    )
    least = {fast(precision): floor_seconds(run, width, size, precision) for precision in precisions}
    least[harness.again(own)] = least[own]

    def more(name):
        seconds = timings[name].median
        figures = {"error": errors.get(name), "videos_per_second": rounded(size / seconds)}
        if name in least:
            figures |= {"floor_seconds": rounded(least[name]), "share_of_floor": rounded(least[name] / seconds)}
        return figures

    return {"batch_size": size, "timings": run.rows(timings, more=more), "left_out": left_out}


def calls_for(run: Run, case: Case) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
    """Return what makes calls of a batch."""
    precisions = harness.precisions_for(run.device)

    def make(name):
        network = make_network(SMOKE_WIDTH if run.smoke else 1.0, run.device)
        contender = makers_for(network, case.batch_size, precisions, case.rivals, run.device)[name]()
        latents = draw_latents(case.batch_size, LATENT_DIM, 2).to(run.device)
        for _ in range(WARM_UP[run.device]):
            contender(latents)
        return partial(contender, latents)

    # Without its graph one rival is another one.
    return {name: partial(make, name) for name in (*map(fast, precisions), *case.rivals) if name != IN_GRAPH}


def details(record: dict) -> Iterator[str]:
    """Describe videos a second."""
    rows = record["timings"]
    yield "  videos/s: " + ", ".join(f"{row['contender']} {row['videos_per_second']:.1f}" for row in rows)


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of the Sampler, at a GPU's first batch size."""
    if device == "cpu":
        return []
    first = BATCH_SIZES[device][0]
    rows = next((record["timings"] for record in records if record["batch_size"] == first), [])
    own = rows[0]["videos_per_second"] if rows else None
    notebook = next((row["ratio"] for row in rows if row["contender"] == NOTEBOOK), None)
    return [
        Goal(f"videos/s, batch {first}", own, 120_000, at_most=False),
        Goal(f"times as fast as the notebook, batch {first}", notebook, 8, at_most=False),
    ]


SECTION = Section(
    name="sampling",
    title="batches of clips on the device; error in levels of 256",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    details=details,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
