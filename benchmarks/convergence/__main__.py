"""Long runs: what contenders learn of moving digits in the same wall-clock time.

    python -m benchmarks.convergence --device cuda --seconds 3600
    python -m benchmarks.convergence --what svc

`fast-vs-reference` trains TrainingStep and the eager reference, each in the arithmetic that it takes by default; `svc`
trains TrainingStep with singular value clipping and without. On a CPU that is the preset `tiny`, on a GPU the preset
`paper`, without the average of the generator's weights, which the reference does not have.

All begin with the same weights, draw the same latents, read the same batches through the package's feed, and take turns
of some seconds, so that a machine whose speed drifts slows down all of them. The clock of each runs only while it
trains. It counts what users wait for, the first iterations included, in which kernels are compiled (Triton keeps them
on the disk for the next run) and CUDA graphs recorded. It does not count what only the benchmark does, judging and
drawing; libraries of CUDA are loaded by judging the untrained networks.

The metric is the Fréchet distance between generated and real clips in the first principal components of real clips. It
sees where the ink is and how it moves, not whether a digit can be read. Its floor is the distance of other real clips.
Runs with other seeds differ: one is a single sample.
"""

from contextlib import ExitStack, closing
from typing import Literal

import torch
import tyro

from benchmarks import results
from benchmarks.convergence.judge import COMPONENTS, Judge, Sizes
from benchmarks.convergence.picture import draw, quality_text, section_of
from benchmarks.convergence.runs import What, make_contenders, take_turns, time_to_quality
from benchmarks.results import rounded
from benchmarks.suite import refuse_without_extension, say_what_is_stale
from tgan_fast.errors import InputError
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.devices import resolve_device

TITLES = {
    "fast-vs-reference": "tgan_fast and the eager reference",
    "svc": "tgan_fast with singular value clipping and without",
}
PRESET = {"cpu": "tiny", "cuda": "paper"}
SETTINGS = ("width", "channels", "digits", "batch_size", "learning_rate", "clip_interval", "seed")  # that are recorded
SIZES = {"cpu": Sizes(20, 1024, 256), "cuda": Sizes(40, 1024, 1024)}
SMOKE_SIZES = Sizes(1, 64, 64)
SMOKE_SECONDS = 0.01


def payload_of(what, preset, config, judge, seconds, sizes, contenders) -> dict:
    """What goes into the file of results."""
    return {
        "title": TITLES[what],
        "preset": preset,
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "seconds": seconds,
        "components": COMPONENTS,
        "explained_variance": rounded(judge.explained),
        "clips": {"real": sizes.real, "generated": sizes.generated},
        "floor": rounded(judge.floor),
        "sooner": time_to_quality(*(c.points for c in contenders)) if what == "fast-vs-reference" else None,
        "contenders": [{"contender": contender.name, "points": contender.points} for contender in contenders],
    }


def print_end(payload: dict) -> None:
    """The table."""
    print(f"\n{'':26}{'iterations':>12}{'it/s':>9}{'loss D':>10}{'metric':>10}")
    for record in payload["contenders"]:
        last = record["points"][-1]
        print(
            f"  {record['contender']:24}{last['iteration']:12,}{last['iteration'] / last['seconds']:9.2f}"
            f"{last['loss_discriminator']:10.4g}{last['metric']:10.4g}"
        )
    print(f"  {'other real clips':24}{payload['floor']:41.4g}")
    if payload["sooner"]:
        print(quality_text(payload["sooner"]))


def main(
    what: What = "fast-vs-reference",
    seconds: float = 60.0,
    device: Literal["cpu", "cuda"] = "cpu",
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train contenders for the same time, print where they are, and write curves and a picture to benchmarks/results.

    Args:
        what: to compare.
        seconds: of training of each contender.
        device: where to run.
        seed: of weights, latents and digits.
        smoke: only show that everything runs, in some iterations, and write nothing.
    """
    if smoke:
        seconds = SMOKE_SECONDS
    if seconds <= 0:
        raise SystemExit(f"error: --seconds is {seconds:g}: choose more than 0")
    preset, sizes = ("tiny", SMOKE_SIZES) if smoke else (PRESET[device], SIZES[device])
    try:
        place = resolve_device(device)
        config = TrainingConfig(**PRESETS[preset] | {"ema_decay": None, "seed": seed, "device": device})
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    refuse_without_extension(device)
    print(f"{results.device_name(device)}, torch {torch.__version__}: {what}, {seconds:g} s each")
    judge, path = Judge(config, place, sizes), None
    with ExitStack() as stack:
        contenders = make_contenders(what, config, place)
        for contender in contenders:
            stack.enter_context(closing(contender))
        for _ in take_turns(contenders, seconds, sizes.points, judge):
            payload = payload_of(what, preset, config, judge, seconds, sizes, contenders)
            if not smoke:
                path = results.write(section_of(what), payload, device)
    print_end(payload)
    if path is not None:
        print(f"written to {path} and {draw(path, what)}")
        say_what_is_stale()


if __name__ == "__main__":
    tyro.cli(main)
