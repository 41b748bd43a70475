"""Evaluation during training: opening the evaluator of a run, and comparing scores."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from tgan_fast.data import ClipDataset, MovingDigits, VideoFrames
from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import notice_on_classes
from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER, load_classifier
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.protocols import PROTOCOLS, check_size, protocol_for
from tgan_fast.metrics.real_statistics import RealClips, default_cache
from tgan_fast.metrics.score_kinds import KIND_OF
from tgan_fast.precision import resolve_evaluation_precision
from tgan_fast.training.config import TrainingConfig


def open_evaluator(config: TrainingConfig, dataset: ClipDataset | VideoFrames, device: torch.device) -> Evaluator:
    """Return an evaluator that compares `config.evaluate_samples` videos of fixed latents with the training data.

    Print a notice on stderr if the classifier does not know all classes of the data.

    Args:
        config: Settings of the run.
        dataset: Data of the run.
        device: Device of the evaluation.

    Raises:
        InputError: The classifier is missing, damaged or for videos of another size or of other channels, or there are
            too few real clips.
    """
    if config.classifier is None and not isinstance(dataset, MovingDigits):
        raise InputError("evaluate_every needs a classifier: train one with python -m tgan_fast train-classifier")
    path = DIGITS_CLASSIFIER if config.classifier is None else Path(config.classifier)
    classifier = load_classifier(path)
    protocol = replace(PROTOCOLS[protocol_for(classifier)], samples=config.evaluate_samples, runs=1)
    check_size(config.frames, config.image_size, protocol)
    if config.channels not in (1, classifier.channels):
        raise InputError(
            f"the classifier {path} takes videos of {classifier.channels} channels, "
            f"but the run's have {config.channels}: train a classifier on the same data"
        )
    notice = notice_on_classes(classifier, class_names(dataset))
    if notice is not None:
        tqdm.write(notice, file=sys.stderr)
    precision = resolve_evaluation_precision("auto", device)
    return Evaluator(
        ("is", "fid"),
        protocol,
        classifier=ClassifierFeatures(classifier, protocol, device, precision),
        real=RealClips(dataset),
        device=device,
        precision=precision,
        cuda_graph=config.cuda_graph,
        cache=default_cache(),
        progress=True,
    )


def class_names(dataset: ClipDataset | VideoFrames) -> tuple[str, ...]:
    """Return the names of the classes of a run's clips; none if they are not known."""
    if isinstance(dataset, MovingDigits):
        return tuple(map(str, range(dataset.classes)))
    if not isinstance(dataset, VideoFrames) or not dataset.videos.class_names:
        return ()
    return tuple(dataset.videos.class_names[number] for number in np.unique(dataset.labels))


def is_better(scores: Mapping[str, float], best: Mapping[str, float], metric: Literal["is", "fid"]) -> bool:
    """Return whether scores are better by a metric than the best ones so far; True if there are none."""
    kind = KIND_OF[metric]
    return kind.name not in best or kind.is_better(scores[kind.name], best[kind.name])
