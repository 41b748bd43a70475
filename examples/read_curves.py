"""The curves of a run in NumPy, and in pandas if it is installed.

A run folder has stats.jsonl, with a line for every logging interval and a line with scores for every evaluation.
`open_run` reads and checks them, and skips a line that a crash cut short.

    python -m tgan_fast.train --preset tiny --out runs/tiny --device cpu    # two minutes; any run will do
    python read_curves.py runs/tiny

Takes two seconds, and also works during training. Prints the mean losses of ten parts of the run, all scores, and the
scores of the best checkpoint.
"""

import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from tgan_fast.reports.recorded_run import open_run
from tgan_fast.training.checkpoint import read

run = open_run(Path(sys.argv[1]))
print(f"{run.name}: {run.iterations:,} iterations in {run.seconds:.0f} seconds")

names = ("iteration", "seconds", "loss_discriminator", "loss_generator")
losses = np.array([[getattr(line, name) for name in names] for line in run.losses])
print("last iteration, mean discriminator loss, mean generator loss")
for part in np.array_split(losses, min(10, len(losses))):
    print(f"{part[-1, 0]:9,.0f} {part[:, 2].mean():9.4f} {part[:, 3].mean():9.4f}")

scores = run.comparable  # evaluations with the same classifier as the last one
print("iteration, inception score, Fréchet distance")
for line in scores:
    print(f"{line.iteration:9,} {line.inception_score:9.3f} {line.frechet_distance:9.3f}")
if run.has_best:
    best = read(run.path / "checkpoints" / "best.pt")
    print(f"best.pt is of iteration {best['step']['iteration']:,}: {best['scores']}")

with suppress(ImportError):
    import pandas as pd

    # All columns, including the scores of real and generated videos and the speed.
    table = pd.read_json(run.path / "stats.jsonl", lines=True)
    print(table.describe().to_string())
