"""Score a trained generator: `python -m tgan_fast evaluate --help`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from tgan_fast.choices import PrecisionOption
from tgan_fast.cli.options import (
    LARGEST_SEED,
    MOST_SAMPLES,
    CheckpointPath,
    Device,
    KeepMemory,
    Weights,
    check_range,
    parse,
)
from tgan_fast.cli.outputs import check_folder
from tgan_fast.errors import InputError, nearest, refuse_out_of_memory
from tgan_fast.files import append_line, write_atomically
from tgan_fast.metrics.score_kinds import SCORE_KINDS, Metric

_MOST_RUNS = 1000


@dataclass
class EvaluateCommand:
    """Compute the inception score, the Fréchet distance (FID) and the Fréchet video distance of a checkpoint.

    The first two need a classifier. The package has one for moving digits. For other videos, give C3D's weights
    and mean (conv3d_deepnetA_ucf.npz or c3d_ucf101.pt, with mean2.npz) or a file made by train-classifier.
    Scores of different protocols or classifiers are not comparable.
    """

    checkpoint: CheckpointPath
    data: Path | None = None
    """Real videos to compare with, as for train --data; by default the training data of the checkpoint."""
    metrics: str = "is,fid"
    """Scores to compute, separated by commas: is, fid, fvd."""
    protocol: Literal["auto", "tgan", "tgan2", "plain"] = "auto"
    """Protocol: tgan or tgan2, as in the papers' code, for C3D; plain for other classifiers; auto: tgan2 or plain."""
    classifier: Path | None = None
    """Classifier file, for is and fid; by default the run's, or the package's own for moving digits."""
    mean: Path | None = None
    """File mean2.npz of C3D's mean, if --classifier is C3D's original weights."""
    i3d: Path | None = None
    """I3D file i3d_torchscript.pt, for fvd."""
    layer: Literal["auto", "pool5", "fc6", "fc7"] = "auto"
    """Layer of C3D whose features fid compares; auto: the protocol's, fc7."""
    samples: int | None = None
    """Number of generated videos per run; by default the protocol's."""
    runs: int | None = None
    """Number of runs to take mean and standard deviation over; by default the protocol's."""
    real_clips: int | None = None
    """Number of real clips for fid and fvd; by default the protocol's."""
    force: bool = False
    """Compute Fréchet distances even with too few real clips."""
    seed: int = 0
    """Seed of the latents."""
    weights: Weights = "auto"
    precision: PrecisionOption = "auto"
    """Precision of convolutions and matrix products; auto: tf32 on GPUs that support it, else fp32."""
    device: Device = "auto"
    keep_memory: KeepMemory = True
    out: Path | None = None
    """JSON file for the scores; by default they are appended to scores.jsonl in the checkpoint's run folder, if any."""


def main(arguments: Sequence[str]) -> None:
    command = parse(EvaluateCommand, arguments, prog="python -m tgan_fast evaluate")
    metrics = _metrics(command)
    _check(command, metrics)
    from tqdm import tqdm

    from tgan_fast import allocator
    from tgan_fast.devices import resolve_device
    from tgan_fast.metrics.classifier import notice_on_classes
    from tgan_fast.metrics.classifier_files import load_classifier
    from tgan_fast.metrics.evaluator import Evaluator
    from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures
    from tgan_fast.metrics.protocols import check_size
    from tgan_fast.metrics.real_statistics import RealClips, default_cache
    from tgan_fast.models.sampling import refuse_non_finite
    from tgan_fast.precision import resolve_evaluation_precision
    from tgan_fast.provenance import provenance
    from tgan_fast.training.checkpoint import find, open_checkpoint
    from tgan_fast.training.scoring import class_names

    device = resolve_device(command.device)
    if command.keep_memory and device.type == "cpu":
        allocator.keep_memory()
    precision = resolve_evaluation_precision(command.precision, device)
    checkpoint = open_checkpoint(find(command.checkpoint))
    generator = checkpoint.generator(command.weights).to(device)
    refuse_non_finite(generator, checkpoint.path)
    classifier = None
    if metrics != ("fvd",):
        classifier = load_classifier(_classifier_path(command, checkpoint), command.mean)
    protocol = _protocol(command, classifier)
    if classifier is not None:
        check_size(generator.clip_frames, generator.image_size, protocol)
    if "fvd" in metrics:
        check_size(generator.clip_frames, generator.image_size, None)
    seen_by = None if classifier is None else ClassifierFeatures(classifier, protocol, device, precision)
    if classifier is not None and generator.channels not in (1, classifier.channels):
        raise InputError(
            f"the generator makes videos of {generator.channels} channels, but the classifier takes "
            f"{classifier.channels}: train one on the same data"
        )
    dataset = _dataset(command, checkpoint, metrics)
    evaluator = Evaluator(
        metrics,
        protocol,
        classifier=seen_by,
        i3d=I3DFeatures(command.i3d, device) if "fvd" in metrics else None,
        real=None if dataset is None else RealClips(dataset, command.real_clips, command.force),
        device=device,
        precision=precision,
        seed=command.seed,
        cache=default_cache(),
        progress=True,
    )
    notices = [*evaluator.notices]
    if classifier is not None and dataset is not None:
        notices += filter(None, [notice_on_classes(classifier, class_names(dataset))])
    if classifier is not None and precision != "fp32":
        notices.append(_difference(generator, seen_by, ClassifierFeatures(classifier, protocol, device, "fp32")))
    for notice in notices:
        tqdm.write(notice, file=sys.stderr)
    try:
        with refuse_out_of_memory(f"{protocol.samples:,} videos do not fit into the memory: choose fewer --samples"):
            evaluator.prepare()
            scores = evaluator(generator)
        record = {
            "checkpoint": checkpoint.path.name,
            "iteration": checkpoint.iteration,
            "weights": checkpoint.kind(command.weights),
            "protocol": protocol.name,
            "samples": protocol.samples,
            "runs": protocol.runs,
            "seed": command.seed,
            "precision": precision,
            "classifier": None if classifier is None else classifier.fingerprint[:12],
            **{name: score.record() for name, score in scores.items()},
            "remarks": notices,
            "environment": provenance(device),
        }
        _print(record, scores)
        _write(command, checkpoint.path, record)
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from None


def _metrics(command) -> tuple[Metric, ...]:
    names = [name.strip().lower() for name in command.metrics.split(",") if name.strip()]
    for name in names:
        if name not in get_args(Metric):
            raise InputError(f"there is no metric {name!r}{nearest(name, get_args(Metric))}: choose from is,fid,fvd")
    if not names:
        raise InputError("--metrics is empty: choose from is,fid,fvd")
    return tuple(dict.fromkeys(names))


def _check(command: EvaluateCommand, metrics) -> None:
    check_range(command, "samples", 2, MOST_SAMPLES)
    check_range(command, "runs", 1, _MOST_RUNS)
    check_range(command, "real_clips", 2, MOST_SAMPLES)
    check_range(command, "seed", 0, LARGEST_SEED)
    if "fvd" in metrics and command.i3d is None:
        raise InputError("fvd needs --i3d i3d_torchscript.pt")
    if command.out is not None:
        check_folder(command.out)


def _classifier_path(command, checkpoint) -> Path:
    from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER

    if command.classifier is not None:
        return command.classifier
    if command.data is None and checkpoint.tells_data:
        # The run's own classifier, so that scores can be compared with those during its training.
        if checkpoint.config.classifier is not None:
            return Path(checkpoint.config.classifier)
        if checkpoint.config.data is None:
            return DIGITS_CLASSIFIER
    raise InputError(
        "is and fid need --classifier, except for moving digits: conv3d_deepnetA_ucf.npz with --mean mean2.npz, or "
        "a file made by python -m tgan_fast train-classifier"
    )


def _protocol(command, classifier):
    from tgan_fast.metrics.protocols import PROTOCOLS, protocol_for

    name = command.protocol
    if name == "auto":
        name = "tgan2" if classifier is None else protocol_for(classifier)
    protocol = PROTOCOLS[name]
    changes = {name: getattr(command, name) for name in ("samples", "runs") if getattr(command, name) is not None}
    if command.layer != "auto":
        changes["layer"] = command.layer
    return replace(protocol, **changes)


def _dataset(command, checkpoint, metrics):
    from tgan_fast.training import TrainingConfig
    from tgan_fast.training.dataset import open_data, with_data

    if command.data is None and not checkpoint.tells_data:
        if metrics == ("is",):
            return None
        raise InputError(f"{checkpoint.path} does not say what it was trained on: give --data")
    return open_data(with_data(checkpoint.config or TrainingConfig(), command.data))


def _difference(generator, rounded, exact) -> str:
    from tgan_fast.models.sampling import draw_inputs, sample_videos

    videos = sample_videos(generator, draw_inputs(generator, 16, 0)).to(next(generator.parameters()))
    return f"the classifier in {rounded.identity['precision']} instead of fp32: " + rounded.of_generated(
        videos
    ).difference(exact.of_generated(videos))


def _print(record, scores) -> None:
    print(
        f"protocol {record['protocol']}: {record['runs']} × {record['samples']:,} generated videos, "
        f"seed {record['seed']}, {record['precision']}, classifier {record['classifier']}"
    )
    titles = {kind.name: kind.title for kind in SCORE_KINDS}
    for name, score in scores.items():
        real = "" if score.real is None else f"   real clips: {score.real:.4g}"
        of = "" if score.layer is None else f"   {score.layer}, against {score.real_clips:,} real clips"
        print(f"{titles[name]:24}{score.mean:10.4g} ± {score.std:.2g}{real}{of}")


def _write(command, checkpoint, record) -> None:
    from tgan_fast.training.checkpoint import run_folder_of

    text = json.dumps(record, ensure_ascii=False)
    if command.out is not None:
        write_atomically(command.out, (text + "\n").encode())
    elif run_folder_of(checkpoint) is not None:
        append_line(run_folder_of(checkpoint) / "scores.jsonl", text)
