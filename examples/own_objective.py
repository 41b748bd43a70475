"""A loss of your own, here the Pearson divergence of f-GAN (Nowozin et al., arXiv:1606.00709).

An objective is a class with two functions of the discriminator's scores [N]. `TrainingStep` takes an instance, and on a
GPU runs it as part of its CUDA graph. Networks, constraint and optimizers stay the same.

    python own_objective.py

Takes 15 seconds on one CPU thread; uses a GPU if there is one. Trains a narrow TGAN on moving digits, and prints both
losses and the mean scores of real and generated videos.
"""

from contextlib import closing
from itertools import islice

import torch

from tgan_fast import TrainingStep, VideoDiscriminator, VideoGenerator
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.training.objectives import Objective

ITERATIONS, BATCH = 100, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Pearson(Objective):
    """Variational lower bound of the χ² divergence: E[D(real)] − E[D(fake)²/4 + D(fake)]."""

    opposite = True  # both networks have the same loss, with opposite signs

    def discriminator(self, real, fake):
        return (fake.square() / 4 + fake).mean() - real.mean()

    def generator(self, fake):
        return -(fake.square() / 4 + fake).mean()


size = {"clip_frames": 8, "image_size": 32}
digits = MovingDigits(digits=1, digit_size=0.75, channels=1, **size)
feed = open_feed(digits, batch_size=BATCH, channels=1, frames=8, image_size=32, device=DEVICE)
torch.manual_seed(0)
generator, discriminator = VideoGenerator(0.125, 32, 1, **size), VideoDiscriminator(0.125, 1, **size)
step = TrainingStep(
    generator.to(DEVICE), discriminator.to(DEVICE), objective=Pearson(), learning_rate=5e-4, read=feed.read
)
with closing(feed.batches()) as batches:
    for batch in islice(batches, ITERATIONS):
        scalars = step(batch.clips)
        if step.iteration % 20 == 0:
            print(f"{step.iteration}:", ", ".join(f"{name} {value.item():.3f}" for name, value in scalars.items()))
