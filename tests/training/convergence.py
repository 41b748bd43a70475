"""500 iterations on moving digits at small width: loss curves of the reference, kept in a file, and of the fast step.

python tests/training/convergence.py    # computes the reference's curves anew, some minutes
"""

import itertools
import json
import sys
from pathlib import Path

import torch

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.training import TrainingStep

WIDTH, LATENT, BATCH, ITERATIONS, WINDOW, RATE = 0.0625, 16, 4, 500, 25, 2e-4
SEEDS = range(5)
CURVES = Path(__file__).with_name("convergence.json")


def batches(seed, iterations=ITERATIONS):
    feed = open_feed(MovingDigits(digits=1, seed=seed), batch_size=BATCH, channels=1, device="cpu", seed=seed)
    return (feed.read(batch.clips) for batch in itertools.islice(feed.batches(), iterations))


def networks(seed):
    torch.manual_seed(seed)
    return reference.Generator(WIDTH, LATENT, 1), reference.Discriminator(WIDTH, 1)


def curve_of_reference(seed):
    generator, discriminator = networks(seed)
    optimizers = reference.make_optimizers(generator, discriminator, RATE)
    random, losses = torch.Generator().manual_seed(seed), []
    for iteration, real in enumerate(batches(seed)):
        z = [torch.rand(BATCH, LATENT, generator=random) * 2 - 1 for _ in range(2)]
        losses.append(reference.training_iteration(generator, discriminator, *optimizers, real, *z, iteration))
    return smooth(losses)


def curve_of_step(seed, device="cpu", iterations=ITERATIONS, **options):
    step = TrainingStep(
        *(network.to(device) for network in (VideoGenerator(WIDTH, LATENT, 1), VideoDiscriminator(WIDTH, 1))),
        learning_rate=RATE,
        seed=seed,
        **options,
    )
    for network, other in zip((step.generator, step.discriminator), networks(seed), strict=True):
        network.load_state_dict(other.state_dict())
    losses = []
    for real in batches(seed, iterations):
        scalars = step(real.to(device))
        losses.append((scalars["loss_discriminator"], scalars["loss_generator"]))
    return smooth(losses)


def smooth(losses):
    """Means over windows: [2, iterations / WINDOW], the discriminator's losses and the generator's."""
    rows = torch.tensor([[float(loss) for loss in pair] for pair in losses])
    return rows.unflatten(0, (-1, WINDOW)).mean(1).mT


def distance(curve, other):
    """Root mean square difference."""
    return (curve - other).square().mean().sqrt().item()


def main():
    torch.set_num_threads(1)
    curves = []
    for seed in SEEDS:
        curves.append(curve_of_reference(seed).tolist())
        print(f"seed {seed}: {curves[-1][0][-1]:.3f}", file=sys.stderr)
    lines = ",\n".join(json.dumps([[round(value, 4) for value in row] for row in curve]) for curve in curves)
    CURVES.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
