"""Folders as training and evaluation leave them, with numbers that are easy to recognize."""

import json

import numpy as np
import torch
import yaml

from tgan_fast.training import TrainingConfig
from tgan_fast.video_files import write_videos


def loss_line(iteration, **changes):
    values = {"iteration": iteration, "loss_discriminator": -1.5, "loss_generator": 0.25, "score_real": 2.0}
    return values | {"score_fake": 0.5, "videos_per_second": 100.0, "seconds": 0.5 * iteration} | changes


def evaluation_line(iteration, inception_score, frechet_distance, **changes):
    values = {"iteration": iteration, "seconds": 0.5 * iteration, "inception_score": inception_score}
    values |= {"frechet_distance": frechet_distance, "protocol": "plain, 1 × 64 samples"}
    return values | {"classifier": "0123456789ab"} | changes


def score_record(**changes):
    values = {"checkpoint": "iteration-00000020.pt", "iteration": 20, "weights": "ema", "protocol": "tgan2"}
    values |= {"samples": 2048, "runs": 10, "seed": 0, "precision": "fp32", "classifier": "ba9876543210"}
    values["inception_score"] = {"mean": 11.854, "std": 0.07, "real": 34.49}
    distance = {"mean": 4321.5, "std": 12.0, "real": 98.76, "real_clips": 20480, "layer": "fc7"}
    return values | {"frechet_distance": distance, "remarks": []} | changes


EVALUATIONS = (evaluation_line(10, 1.25, 900.0), evaluation_line(20, 3.5, 70.5), evaluation_line(30, 2.0, 80.0))


def write_filled(path, checkpoint, network, values):
    """Copy a checkpoint to a path, with tensors of a network filled: `values` has the value of each by its name."""
    content = torch.load(checkpoint, weights_only=True)
    for name, value in values.items():
        content["step"][network][name].fill_(value)
    torch.save(content, path)
    return path


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(folder, evaluations=EVALUATIONS, scores=(), samples=True, config=()):
    """Write the folder of a run of 30 iterations."""
    (folder / "samples").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(TrainingConfig(**dict(config)).model_dump()))
    environment = {"iteration": 0, "torch": "2.99.1", "device": "cpu", "cuda": None}
    (folder / "environment.jsonl").write_text(lines_of([environment]))
    stats = [*map(loss_line, (10, 20, 30)), *evaluations]
    (folder / "stats.jsonl").write_text(lines_of(stats))
    if scores:
        (folder / "scores.jsonl").write_text(lines_of(scores))
    if samples:
        for iteration, level in ((10, 50), (20, 200)):
            clips = np.full((4, 16, 64, 64, 1), level, np.uint8)
            write_videos(folder / "samples" / f"{iteration:08d}.gif", clips)
    return folder
