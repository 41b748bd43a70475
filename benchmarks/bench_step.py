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
    """The eager reference as its own users run it, on contiguous videos."""

    memory_format = torch.contiguous_format

    def __init__(self, device):
        torch.manual_seed(0)
        self.generator = reference.Generator().to(device)
        self.discriminator = reference.Discriminator().to(device)
        self.optimizers = reference.make_optimizers(self.generator, self.discriminator)
        self.random = torch.Generator(device).manual_seed(0)
        self.iteration = 0

    def __call__(self, real):
        z = [torch.rand(len(real), 100, generator=self.random, device=real.device) * 2 - 1 for _ in range(2)]
        losses = reference.training_iteration(
            self.generator, self.discriminator, *self.optimizers, real, *z, self.iteration, CYCLE
        )
        self.iteration += 1
        return losses


class FastRun:
    """TrainingStep on videos as its loader lays them out."""

    memory_format = torch.channels_last_3d

    def __init__(self, device, start: ReferenceRun):
        generator, discriminator = VideoGenerator(), VideoDiscriminator()
        generator.load_state_dict(start.generator.state_dict())
        discriminator.load_state_dict(start.discriminator.state_dict())
        self.step = TrainingStep(generator.to(device), discriminator.to(device), clip_interval=CYCLE, seed=0)

    def __call__(self, real):
        scalars = self.step(real)
        return scalars["loss_discriminator"], scalars["loss_generator"]


def check(contenders, batch) -> float:
    """Largest relative difference of the losses of one iteration; raises when the two do not agree."""
    expected, got = (torch.stack(run(real)).double().cpu() for run, real in zip(contenders, batch, strict=True))
    difference = ((expected - got).abs() / expected.abs()).max().item()
    tolerance = TOLERANCE[batch[0].device.type]
    if not difference <= tolerance:
        raise SystemExit(f"error: the losses differ by {difference:.1e}, more than {tolerance:.0e}: nothing is timed")
    return difference


def seconds(run, real) -> float:
    """Wall-clock time of one call, the device's work included."""
    if real.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(real)
    if real.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def describe(device) -> str:
    """The device, and what float32 means there."""
    if device == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, float32"
    precision = "float32, TF32 in convolutions" if torch.backends.cudnn.allow_tf32 else "float32"
    return f"{torch.cuda.get_device_name()}, {precision}"


def main(device: Literal["cpu", "cuda"] = "cpu", batch_size: int | None = None, cycles: int = 3) -> None:
    """Print both times and their ratio.

    Args:
        device: where to run.
        batch_size: videos in a batch; 8 on a CPU and 32 on a GPU by default.
        cycles: timed cycles of five iterations, after one that is not counted.
    """
    batch_size = batch_size or (8 if device == "cpu" else 32)
    start = ReferenceRun(device)
    contenders = (start, FastRun(device, start))
    videos = [torch.rand(batch_size, 3, 16, 64, 64, device=device) * 2 - 1 for _ in range(CYCLE)]
    batches = [[real.contiguous(memory_format=run.memory_format) for run in contenders] for real in videos]
    print(f"{describe(device)}, torch {torch.__version__}, width 1, batch {batch_size}")
    print(f"losses of the first iteration differ by {check(contenders, batches[0]):.1e}")

    for batch in batches[1:]:
        for run, real in zip(contenders, batch, strict=True):
            run(real)
    times = []
    for cycle in range(cycles):
        turns = [[seconds(run, real) for run, real in zip(contenders, batch, strict=True)] for batch in batches]
        times.append([statistics.mean(column) for column in zip(*turns, strict=True)])
        print(f"cycle {cycle}: reference {times[-1][0]:.4f} s, fast {times[-1][1]:.4f} s an iteration")
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"reference {slow:.4f} s / fast {fast:.4f} s = {slow / fast:.2f} (medians of {cycles} cycles)")


if __name__ == "__main__":
    tyro.cli(main)
