"""Table of scores: the preset of every system, trained for about two minutes on a CPU.

    python -m benchmarks.score_presets --classifier digits.pt

Scores come from a small classifier of moving digits (`python -m tgan_fast train-classifier --out digits.pt`). They hold
for such short runs of narrow models only: with other seeds the systems rank differently.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import tyro

from benchmarks import result_files
from benchmarks.result_files import rounded
from tgan_fast import allocator
from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier_files import load_classifier
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.metrics.real_statistics import RealClips
from tgan_fast.models.sampling import Sampler, draw_inputs
from tgan_fast.training import PRESETS, TrainingConfig, train
from tgan_fast.training.dataset import open_data
from tgan_fast.training.devices import resolve_device
from tgan_fast.video_files import write_videos

SECTION = "systems"
PROTOCOL = replace(PROTOCOLS["plain"], samples=512, runs=4, real_clips=2048)
# preset → title and source
SYSTEMS = {
    "paper": "TGAN: WGAN, singular value clipping (arXiv:1611.06624), in the PyTorch notebook's order",
    "authors": "the same in the order of the authors' own code",
    "weight-clip": "TGAN: WGAN, weight clipping ±0.01 (arXiv:1611.06624)",
    "vanilla": "TGAN: vanilla GAN, noise on what the discriminator sees (arXiv:1611.06624)",
    "lsgan": "least squares (arXiv:1611.04076)",
    "gradient-penalty": "WGAN, gradient penalty over the whole video (arXiv:1704.00028)",
    "spectral-norm": "WGAN, spectral normalization (arXiv:1802.05957)",
    "conditional": "conditional TGAN (arXiv:1611.06624)",
    "gru-summary": "GRU, frames of their own latents, frames as channels: the formulation of summaries",
}


def tiny(name: str) -> str:
    """Return a system's preset for a CPU."""
    return "tiny" if name == "paper" else f"tiny-{name}"


def picture_of(stem: str, name: str) -> str:
    """Return the name of a system's picture beside a device's file of results, which has this stem."""
    return f"{stem}-system-{name}.png"


def main(classifier: Path) -> None:
    """Train and score every system, and write the section `systems` of the file of results and a picture of each.

    Args:
        classifier: Classifier of moving digits.
    """
    device = resolve_device("auto")
    try:
        network = load_classifier(classifier)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    path, found = result_files.file_of(device.type), {}
    if device.type == "cpu":
        # As the command trains.
        allocator.keep_memory()
    for name in SYSTEMS:
        config = TrainingConfig(**PRESETS[tiny(name)], device=str(device))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            step = train(config, Path(folder))
            seconds = time.perf_counter() - begin
        generator = step.generator if step.ema is None else step.ema
        clips = Sampler(generator)(draw_inputs(generator, 4, 0)).numpy()
        write_videos(path.with_name(picture_of(path.stem, name)), clips)
        features, real = ClassifierFeatures(network, PROTOCOL, device, "fp32"), RealClips(open_data(config))
        evaluator = Evaluator(("is", "fid"), PROTOCOL, classifier=features, real=real, device=device)
        evaluator.prepare()
        scores = {
            key: {part: rounded(getattr(score, part)) for part in ("mean", "std", "real")}
            for key, score in evaluator(generator).items()
        }
        found[name] = {"preset": tiny(name), "iterations": step.iteration, "seconds": rounded(seconds), **scores}
        print(f"{name}: {found[name]}", flush=True)
        # Written after each system, so that an interruption loses only one.
        result_files.write_section(SECTION, {"systems": found}, device.type)


if __name__ == "__main__":
    tyro.cli(main)
