"""Score a trained generator, or videos: `python -m tgan_fast evaluate --help`."""

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
from tgan_fast.cli.scored_videos import GeneratedVideos, GivenVideos
from tgan_fast.errors import InputError, nearest, refuse_out_of_memory
from tgan_fast.files import append_line, write_atomically
from tgan_fast.metrics.score_kinds import KIND_OF, SCORE_KINDS, Metric

_MOST_RUNS = 1000
_METRICS = ",".join(get_args(Metric))


@dataclass
class EvaluateCommand:
    """Compute the inception score and Fréchet distances of a checkpoint, or of videos.

    The inception score and the Fréchet distance (FID) need a classifier. The package has one for moving digits. For
    other videos, give C3D's weights and mean (conv3d_deepnetA_ucf.npz or c3d_ucf101.pt, with mean2.npz) or a file made
    by train-classifier. Scores of different protocols or classifiers are not comparable.
    """

    checkpoint: CheckpointPath | None = None
    videos: Path | None = None
    """Videos to score in place of a checkpoint: a clip store, an array, or anything else that prepare reads. Without
    --data, one half of them is scored against the other half: the noise floor of the metrics."""
    data: Path | None = None
    """Real videos to compare with, as for train --data; with --videos, anything that prepare reads. By default the
    training data of the checkpoint."""
    metrics: str = "is,fid"
    """Scores to compute, separated by commas: is, fid, fvd, frame-fid (of single frames)."""
    protocol: Literal["auto", "tgan", "tgan2", "plain"] = "auto"
    """Protocol: tgan or tgan2, as in the papers' code, for C3D; plain for other classifiers; auto: tgan2 or plain."""
    classifier: Path | None = None
    """Classifier file, for is and fid; digits is the package's own for moving digits. By default the run's classifier,
    or digits for moving digits."""
    mean: Path | None = None
    """File mean2.npz of C3D's mean, if --classifier is C3D's original weights."""
    i3d: Path | None = None
    """I3D file i3d_torchscript.pt, for fvd."""
    inception: Path | None = None
    """Inception file inception-2015-12-05.pt, for frame-fid."""
    layer: Literal["auto", "pool5", "fc6", "fc7"] = "auto"
    """Layer of C3D whose features fid compares; auto: the protocol's, fc7."""
    samples: int | None = None
    """Number of generated or given videos per run; by default the protocol's."""
    runs: int | None = None
    """Number of runs to take mean and standard deviation over; by default the protocol's."""
    real_clips: int | None = None
    """Number of real clips for Fréchet distances; by default the protocol's."""
    force: bool = False
    """Compute Fréchet distances even with too few real clips."""
    seed: int = 0
    """Seed of the latents, or of the choice of clips."""
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
    from tgan_fast import allocator
    from tgan_fast.processes import joined

    with joined(command.device) as (processes, device):
        if command.keep_memory and device.type == "cpu":
            allocator.keep_memory()
        _evaluate(command, metrics, processes, device)


def _evaluate(command, metrics, processes, device):
    from tqdm import tqdm

    from tgan_fast.metrics.classifier import notice_on_classes
    from tgan_fast.metrics.classifier_files import load_classifier
    from tgan_fast.metrics.evaluator import Evaluator
    from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures, InceptionFeatures
    from tgan_fast.metrics.protocols import check_size
    from tgan_fast.metrics.real_statistics import RealClips, default_cache
    from tgan_fast.precision import resolve_evaluation_precision
    from tgan_fast.provenance import provenance
    from tgan_fast.training.checkpoint import find, open_checkpoint
    from tgan_fast.training.scoring import class_names

    precision = resolve_evaluation_precision(command.precision, device)
    checkpoint = None if command.checkpoint is None else open_checkpoint(find(command.checkpoint))
    classifier = None
    if any(KIND_OF[metric].network == "classifier" for metric in metrics):
        classifier = load_classifier(_classifier_path(command, checkpoint), command.mean)
    protocol = _protocol(command, classifier)
    i3d = I3DFeatures(command.i3d, device) if "fvd" in metrics else None
    inception = InceptionFeatures(command.inception, device) if "frame-fid" in metrics else None
    subject = GivenVideos(command) if checkpoint is None else GeneratedVideos(command, checkpoint, device)
    clip_frames, image_size, channels = subject.size
    if classifier is not None:
        check_size(clip_frames, image_size, protocol)
    if "fvd" in metrics:
        check_size(clip_frames, image_size, None)
    seen_by = None if classifier is None else ClassifierFeatures(classifier, protocol, device, precision)
    if classifier is not None and channels not in (1, classifier.channels):
        raise InputError(
            f"{subject.has} videos of {channels} channels, but the classifier takes {classifier.channels}: "
            "train one on the same data"
        )
    dataset = subject.real_data(metrics)
    evaluator = Evaluator(
        metrics,
        protocol,
        classifier=seen_by,
        i3d=i3d,
        inception=inception,
        real=None if dataset is None else RealClips(dataset, command.real_clips, command.force),
        device=device,
        precision=precision,
        seed=command.seed,
        cache=default_cache(),
        progress=True,
        processes=processes,
    )
    notices = [*subject.notices, *evaluator.notices]
    if classifier is not None and dataset is not None:
        notices += filter(None, [notice_on_classes(classifier, class_names(dataset))])
    if classifier is not None and precision != "fp32" and checkpoint is not None:
        exact = ClassifierFeatures(classifier, protocol, device, "fp32")
        notices.append(_difference(subject.generator, seen_by, exact))
    for notice in notices if processes.rank == 0 else ():
        tqdm.write(notice, file=sys.stderr)
    with refuse_out_of_memory(f"{protocol.samples:,} videos do not fit into the memory: choose fewer --samples"):
        scores = subject.scores(evaluator)
    if processes.rank != 0:
        return
    record = {
        **subject.record(),
        "protocol": protocol.name,
        "samples": subject.clips_per_run(protocol),
        "runs": protocol.runs,
        "seed": command.seed,
        "precision": precision,
        "classifier": None if classifier is None else classifier.fingerprint[:12],
        **{name: score.record() for name, score in scores.items()},
        "remarks": notices,
        "environment": provenance(device),
    }
    _print(record, scores, subject)
    _write(command, subject.run_folder(), record)


def _metrics(command) -> tuple[Metric, ...]:
    names = [name.strip().lower() for name in command.metrics.split(",") if name.strip()]
    for name in names:
        if name not in get_args(Metric):
            raise InputError(f"there is no metric {name!r}{nearest(name, get_args(Metric))}: choose from {_METRICS}")
    if not names:
        raise InputError(f"--metrics is empty: choose from {_METRICS}")
    return tuple(dict.fromkeys(names))


def _check(command: EvaluateCommand, metrics) -> None:
    if (command.checkpoint is None) == (command.videos is None):
        raise InputError("give either --checkpoint or --videos")
    if command.videos is not None and command.weights != "auto":
        raise InputError("--weights is for a checkpoint, not for --videos: leave it out")
    if command.videos is not None and command.data is None and command.real_clips is not None:
        raise InputError("--real-clips is for --data, which is not given: leave it out")
    check_range(command, "samples", 2, MOST_SAMPLES)
    check_range(command, "runs", 1, _MOST_RUNS)
    check_range(command, "real_clips", 2, MOST_SAMPLES)
    check_range(command, "seed", 0, LARGEST_SEED)
    if "fvd" in metrics and command.i3d is None:
        raise InputError("fvd needs --i3d i3d_torchscript.pt")
    if "frame-fid" in metrics and command.inception is None:
        raise InputError("frame-fid needs --inception inception-2015-12-05.pt")
    if command.out is not None:
        check_folder(command.out)


def _classifier_path(command, checkpoint) -> Path:
    from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER

    if command.classifier is not None:
        named = str(command.classifier) == "digits" and not command.classifier.exists()
        return DIGITS_CLASSIFIER if named else command.classifier
    if checkpoint is not None and command.data is None and checkpoint.tells_data:
        # The run's own classifier, so that scores can be compared with those during its training.
        if checkpoint.config.classifier is not None:
            return Path(checkpoint.config.classifier)
        if checkpoint.config.data is None:
            return DIGITS_CLASSIFIER
    raise InputError(
        "is and fid need --classifier: conv3d_deepnetA_ucf.npz with --mean mean2.npz, a file made by "
        "python -m tgan_fast train-classifier, or digits for moving digits"
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


def _difference(generator, rounded, exact) -> str:
    from tgan_fast.models.sampling import draw_inputs, sample_videos

    videos = sample_videos(generator, draw_inputs(generator, 16, 0)).to(next(generator.parameters()))
    return f"the classifier in {rounded.identity['precision']} instead of fp32: " + rounded.of_generated(
        videos
    ).difference(exact.of_generated(videos))


def _print(record, scores, subject) -> None:
    print(
        f"protocol {record['protocol']}: {record['runs']} × {record['samples']:,} {subject.kind}, "
        f"seed {record['seed']}, {record['precision']}, classifier {record['classifier']}"
    )
    titles = {kind.name: kind.title for kind in SCORE_KINDS}
    for name, score in scores.items():
        real = "" if score.real is None else f"   real clips: {score.real:.4g}"
        of = "" if score.layer is None else f"   {score.layer}, against {score.real_clips:,} {subject.compared}"
        print(f"{titles[name]:24}{score.mean:10.4g} ± {score.std:.2g}{real}{of}")


def _write(command, run_folder, record) -> None:
    text = json.dumps(record, ensure_ascii=False)
    try:
        if command.out is not None:
            write_atomically(command.out, (text + "\n").encode())
        elif run_folder is not None:
            append_line(run_folder / "scores.jsonl", text)
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from None
