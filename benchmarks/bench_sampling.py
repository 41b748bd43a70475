"""Sampling of clips: Sampler against the eager reference and against tuned PyTorch.

    python -m benchmarks.bench_sampling --device cuda

From latents to uint8 clips on the device; the levels of all contenders must first agree with float64.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks import accuracy, harness, suite
from benchmarks.bench_step import SMOKE_BATCH, fast, width_of
from benchmarks.contenders import IN_GRAPH, NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, TUNED, cudnn_for
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast import VideoGenerator, reference
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import Sampler, draw_latents

LATENT_DIM, CHANNELS = 100, 3
COMPILED = "tuned, compiled"
# How users of plain PyTorch sample, by name: arguments of `make_rival`.
RIVALS = {
    NOTEBOOK: {},
    NOTEBOOK_FP32: {"precision": "fp32"},
    TUNED: {"tuned": True},
    IN_GRAPH: {"tuned": True},
    COMPILED: {"tuned": True, "compiled": True},
}
# Largest root mean square errors in levels: the bound of rounding to integers, and several times bfloat16's error; a
# rival with a larger error computes something else.
ALWAYS_ALLOWED, FAR = 0.5, 5.0
BATCH_SIZES = {"cpu": (8, 1), "cuda": (64, 16, 256)}
INPUT_SETS = {"cpu": 1, "cuda": 8}
# Number of calls before a Sampler replays its graph; a CPU has none.
WARM_UP = {"cpu": 1, "cuda": 4}


def make_rival(network: reference.Generator, precision: str = "tf32", tuned: bool = False, compiled: bool = False):
    """Return a function from latents to clips uint8 [N, 16, 64, 64, C] as users of the reference would write it.

    TF32 is PyTorch's default. Tuned means channels-last, bfloat16 autocast, and cuDNN's fastest algorithms.
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
    """Return levels [N, T, H, W, C], not rounded, of videos [N, C, T, H, W] in [-1, 1]."""
    return (videos.permute(0, 2, 3, 4, 1) + 1) * 127.5


def cases_for(run: Run) -> list[str]:
    """Return the cases, the most important first."""
    return [f"batch {size}" for size in ((SMOKE_BATCH,) if run.smoke else BATCH_SIZES[run.device])]


def names_for(run: Run, batch_size: int) -> list[str]:
    """Return the contenders of a case, tgan_fast first; torch.compile takes part only in a GPU's first case."""
    rivals = [NOTEBOOK, TUNED] if run.device == "cpu" else list(RIVALS)  # on a CPU all is float32
    if run.device == "cuda" and (run.own_only or batch_size != BATCH_SIZES["cuda"][0]):
        rivals.remove(COMPILED)
    return [*map(fast, harness.precisions_for(run.device)), *rivals]


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


def make(name: str, network: reference.Generator, batch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a contender, a function from latents to clips uint8 [N, 16, 64, 64, C]."""
    if name in RIVALS:
        return make_rival(copy_of(network), **RIVALS[name])
    generator = VideoGenerator(network.half / 256, LATENT_DIM, CHANNELS)
    generator.load_state_dict(network.state_dict())
    generator.to(next(network.parameters()).device)
    sampler = Sampler(generator, batch_size=batch_size, precision=name.removeprefix(fast("")))
    # On a GPU the copy to the CPU is left out.
    return lambda latents: next(sampler.on_device(latents)) if latents.is_cuda else sampler(latents)


def measure(run: Run, case: str) -> dict:
    """Check and time contenders on batches of one size."""
    size, network = int(case.split()[1]), make_network(width_of(run), run.device)
    latents = draw_latents(size, LATENT_DIM, 0).to(run.device)
    with torch.no_grad():
        exact = _levels(copy_of(network, torch.float64)(latents.double()))
    contenders = {}

    def clips_of(name):
        contenders[name] = make(name, network, size)
        return [contenders[name](latents) for _ in range(WARM_UP[run.device])]

    def error_of(clips):
        return rounded(max((each.double() - exact).square().mean().sqrt().item() for each in clips))

    def allowed(name, errors):
        if name in RIVALS:
            return FAR
        eager = errors.get(NOTEBOOK if run.device == "cpu" else SAME_ARITHMETIC[name.removeprefix(fast(""))], 0.0)
        # A rival that was left out does not raise the allowed error.
        return max(ALWAYS_ALLOWED, 2 * eager if eager <= FAR else 0.0)

    calls = {name: partial(clips_of, name) for name in names_for(run, size)}
    errors, left_out = accuracy.check_contenders(case, calls, error_of, allowed, RIVALS)
    timings = run.measure(
        {name: contenders[name] for name in errors},
        draw_latents(INPUT_SETS[run.device] * size, LATENT_DIM, 2).to(run.device).split(size),
        rivals=RIVALS,
        uncaptured={name: "as its users run it" for name in errors if name not in (IN_GRAPH, COMPILED)},
    )

    def more(name):
        return {"error": errors.get(name), "videos_per_second": rounded(size / timings[name].median)}

    return {"batch_size": size, "timings": run.rows(timings, more=more), "left_out": left_out}


def calls_for(run: Run, case: str) -> dict[str, Callable[[], Callable[[], torch.Tensor]]]:
    """Return functions that make the calls of a batch."""
    size = int(case.split()[1])

    def call_of(name):
        contender = make(name, make_network(width_of(run), run.device), size)
        latents = draw_latents(size, LATENT_DIM, 2).to(run.device)
        for _ in range(WARM_UP[run.device]):
            contender(latents)
        return partial(contender, latents)

    # Without its graph, one rival equals another.
    return {name: partial(call_of, name) for name in names_for(run, size) if name != IN_GRAPH}


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
    goals=goals_for,
    both_ways=True,
)

if __name__ == "__main__":
    suite.main(SECTION)
