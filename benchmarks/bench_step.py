"""A whole training iteration, singular value clipping included: TrainingStep against the eager reference.

    python -m benchmarks.bench_step --device cpu

Both start from the same weights. First they must agree; then they take turns, iteration by iteration, on the same
random videos, so that a machine whose speed drifts slows down both. A cycle is five iterations, one of them with
singular value clipping, as in training.
"""

import statistics
import time
from typing import Literal

import torch
import tyro

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.training import TrainingStep

CYCLE = 5
# In units of the loss's own size; float32 (TF32 on a GPU) convolutions in another order and layout.
TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}


class ReferenceRun:
    """The eager reference as its own users run it: contiguous videos, one call an iteration."""

    def __init__(self, device):
        torch.manual_seed(0)
        self.generator = reference.Generator().to(device)
        self.discriminator = reference.Discriminator().to(device)
        self.optimizers = reference.make_optimizers(self.generator, self.discriminator)
        self.random = torch.Generator(device).manual_seed(0)
        self.iteration = 0

    def __call__(self, clips):
        real = clips.permute(0, 4, 1, 2, 3).contiguous()
        z = [torch.rand(len(real), 100, generator=self.random, device=real.device) * 2 - 1 for _ in range(2)]
        losses = reference.training_iteration(
            self.generator, self.discriminator, *self.optimizers, real, *z, self.iteration, CYCLE
        )
        self.iteration += 1
        return losses


class FastRun:
    """TrainingStep on videos as the loader lays them out."""

    def __init__(self, device, start: ReferenceRun):
        generator, discriminator = VideoGenerator(), VideoDiscriminator()
        generator.load_state_dict(start.generator.state_dict())
        discriminator.load_state_dict(start.discriminator.state_dict())
        self.step = TrainingStep(generator.to(device), discriminator.to(device), clip_interval=CYCLE, seed=0)

    def __call__(self, clips):
        scalars = self.step(clips.permute(0, 4, 1, 2, 3))
        return scalars["loss_discriminator"], scalars["loss_generator"]


def check(contenders, clips) -> float:
    """Largest relative difference of the losses of one iteration; raises when the two do not agree."""
    expected, got = (torch.stack(run(clips)).double().cpu() for run in contenders)
    difference = ((expected - got).abs() / expected.abs()).max().item()
    tolerance = TOLERANCE[clips.device.type]
    if not difference <= tolerance:
        raise SystemExit(f"error: the losses differ by {difference:.1e}, more than {tolerance:.0e}: nothing is timed")
    return difference


def seconds(run, clips) -> float:
    """Wall-clock time of one call, the device's work included."""
    if clips.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(clips)
    if clips.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(device: Literal["cpu", "cuda"] = "cpu", batch_size: int | None = None, cycles: int = 3) -> None:
    """Print both times and their ratio.

    Args:
        device: where to run.
        batch_size: videos in a batch; 8 on a CPU and 32 on a GPU by default.
        cycles: timed cycles of five iterations, after one that is not counted.
    """
    batch_size = batch_size or (8 if device == "cpu" else 32)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    clips = [torch.rand(batch_size, 16, 64, 64, 3, device=device) * 2 - 1 for _ in range(CYCLE)]
    start = ReferenceRun(device)
    contenders = (start, FastRun(device, start))
    print(f"{name}, torch {torch.__version__}, width 1, batch {batch_size}, float32")
    print(f"losses of the first iteration differ by {check(contenders, clips[0]):.1e}")

    for batch in clips[1:]:
        for run in contenders:
            run(batch)
    times = []
    for cycle in range(cycles):
        turns = [[seconds(run, batch) for run in contenders] for batch in clips]
        times.append([statistics.mean(column) for column in zip(*turns, strict=True)])
        print(f"cycle {cycle}: reference {times[-1][0]:.4f} s, fast {times[-1][1]:.4f} s an iteration")
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"reference {slow:.4f} s / fast {fast:.4f} s = {slow / fast:.2f} (medians of {cycles} cycles)")


if __name__ == "__main__":
    tyro.cli(main)
