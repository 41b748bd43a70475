"""TGAN on a data set of your own: colored squares that bounce, drawn with NumPy.

A data set is any object with a length that returns pairs (clip, label) by index. Clips are uint8 [frames, height,
width, channels]. The same index must always give the same clip, so that an interrupted run resumes exactly. With
`classes`, the labels can condition both networks.

    python own_data_set.py [FOLDER]

Takes 20 seconds on one CPU thread; uses a GPU if there is one. Writes a run folder (by default runs/squares, which must
not hold a run yet) with samples, curves and checkpoints, and squares.gif in it with a row for each color.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import tgan_fast
from tgan_fast.models.sampling import draw_latents
from tgan_fast.video_files import write_videos

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/squares")
FRAMES, SIZE, SIDE = 8, 16, 6


class BouncingSquares:
    """Clips of a red, a green or a blue square on a black ground."""

    classes = 3

    def __len__(self):
        return 3000

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        start, velocity = random.uniform(0, SIZE, 2), random.uniform(-2, 2, 2)
        path = (start + velocity * np.arange(FRAMES)[:, None]) % (2 * (SIZE - SIDE))
        label = index % 3
        clip = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        for frame, (y, x) in zip(clip, np.minimum(path, 2 * (SIZE - SIDE) - path).astype(int), strict=True):
            frame[y : y + SIDE, x : x + SIDE, label] = 255
        return clip, label


settings = {"channels": 3, "frames": FRAMES, "image_size": SIZE, "conditional": True, "width": 0.125, "latent_dim": 16}
settings |= {"batch_size": 16, "steps": 150, "learning_rate": 1e-3, "ema_decay": 0.95, "workers": 1}
config = tgan_fast.TrainingConfig(**settings, log_interval=10)  # `python -m tgan_fast.train --help` lists all settings
step = tgan_fast.train(config, OUT, dataset=BouncingSquares())

generator = step.ema
inputs = generator.conditioned(draw_latents(24, generator.latent_dim, seed=0), torch.arange(3).repeat_interleave(8))
clips = tgan_fast.Sampler(generator)(inputs)
write_videos(OUT / "squares.gif", clips.numpy(), columns=8)
for name, of_color in zip(("red", "green", "blue"), clips.split(8), strict=True):
    red, green, blue = of_color.float().mean((0, 1, 2, 3)).tolist()
    print(f"{name} squares have a mean level of {red:.0f} (red), {green:.0f} (green), {blue:.0f} (blue)")
