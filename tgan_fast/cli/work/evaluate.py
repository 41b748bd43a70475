"""Score a generator, and record the scores."""

import json
import sys
from dataclasses import replace

from tqdm import tqdm

from tgan_fast.cli.evaluate import EvaluateCommand
from tgan_fast.data import MovingDigits, VideoFrames
from tgan_fast.errors import InputError, telling_of_memory
from tgan_fast.files import append_line, write_atomically
from tgan_fast.metrics.classifier import Classifier, notice_on_classes
from tgan_fast.metrics.classifier_files import load_classifier
from tgan_fast.metrics.evaluator import Evaluator, Score
from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures
from tgan_fast.metrics.protocols import PROTOCOLS, Protocol, check_size, protocol_for
from tgan_fast.metrics.real_statistics import RealClips
from tgan_fast.metrics.score_kinds import SCORE_KINDS, Metric
from tgan_fast.metrics.statistics_cache import default_cache
from tgan_fast.models import Generator
from tgan_fast.models.sampling import draw_inputs, refuse_non_finite, sample_videos
from tgan_fast.precision import resolve_evaluation_precision
from tgan_fast.training import TrainingConfig
from tgan_fast.training.checkpoint import Checkpoint, find, open_checkpoint, run_folder_of
from tgan_fast.training.data import open_data, with_data
from tgan_fast.training.devices import resolve_device
from tgan_fast.training.provenance import provenance
from tgan_fast.training.scoring import class_names


def run(command: EvaluateCommand, metrics: tuple[Metric, ...]) -> None:
    device = resolve_device(command.device)
    precision = resolve_evaluation_precision(command.precision, device)
    checkpoint = open_checkpoint(find(command.checkpoint))
    generator = checkpoint.generator(command.weights).to(device)
    check_size(generator.clip_frames, generator.image_size)
    refuse_non_finite(generator, checkpoint.path)
    classifier = None if metrics == ("fvd",) else load_classifier(command.classifier, command.mean)
    protocol = _protocol(command, classifier)
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
    remarks = [*evaluator.remarks]
    if classifier is not None and dataset is not None:
        remarks += filter(None, [notice_on_classes(classifier, class_names(dataset))])
    if classifier is not None and precision != "fp32":
        remarks.append(_difference(generator, seen_by, ClassifierFeatures(classifier, protocol, device, "fp32")))
    for remark in remarks:
        tqdm.write(remark, file=sys.stderr)
    try:
        with telling_of_memory(f"{protocol.samples:,} videos do not fit into the memory: choose fewer --samples"):
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
            "remarks": remarks,
            "environment": provenance(device),
        }
        _print(record, scores)
        _write(command, checkpoint.path, record)
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from None


def _protocol(command, classifier: Classifier | None) -> Protocol:
    name = command.protocol
    if name == "auto":
        name = "tgan2" if classifier is None else protocol_for(classifier)
    protocol = PROTOCOLS[name]
    changes = {name: getattr(command, name) for name in ("samples", "runs") if getattr(command, name) is not None}
    if command.layer != "auto":
        changes["layer"] = command.layer
    return replace(protocol, **changes)


def _dataset(command, checkpoint: Checkpoint, metrics) -> MovingDigits | VideoFrames | None:
    if command.data is None and checkpoint.config is None:
        if metrics == ("is",):
            return None
        raise InputError(f"{checkpoint.path} does not tell what it was trained on: give --data")
    return open_data(with_data(checkpoint.config or TrainingConfig(), command.data))


def _difference(generator: Generator, rounded: ClassifierFeatures, exact: ClassifierFeatures) -> str:
    videos = sample_videos(generator, draw_inputs(generator, 16, 0)).to(next(generator.parameters()))
    return f"the classifier in {rounded.identity['precision']} instead of fp32: " + rounded.of_generated(
        videos
    ).difference(exact.of_generated(videos))


def _print(record, scores: dict[str, Score]) -> None:
    print(
        f"protocol {record['protocol']}: {record['runs']} × {record['samples']:,} generated videos, "
        f"seed {record['seed']}, {record['precision']}, classifier {record['classifier']}"
    )
    titles = {kind.name: kind.title for kind in SCORE_KINDS}
    for name, score in scores.items():
        real = "" if score.real is None else f"   real clips: {score.real:.4g}"
        of = "" if score.layer is None else f"   {score.layer}, to {score.real_clips:,} real clips"
        print(f"{titles[name]:24}{score.mean:10.4g} ± {score.std:.2g}{real}{of}")


def _write(command, checkpoint, record) -> None:
    text = json.dumps(record, ensure_ascii=False)
    if command.out is not None:
        write_atomically(command.out, (text + "\n").encode())
    elif run_folder_of(checkpoint) is not None:
        append_line(run_folder_of(checkpoint) / "scores.jsonl", text)
