"""Score a trained generator, or videos: `python -m tgan_fast evaluate --help`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
from tgan_fast.errors import InputError, counted, nearest, refuse_out_of_memory
from tgan_fast.extras import require_package
from tgan_fast.files import append_line, write_atomically
from tgan_fast.metrics.score_kinds import KIND_OF, SCORE_KINDS, Metric
from tgan_fast.sizes import FEWEST_FRAMES, FRAMES, IMAGE_SIZE, IMAGE_SIZES

_MOST_RUNS = 1000
_METRICS = ",".join(get_args(Metric))
_NO_CLASSIFIER = (
    "is and fid need --classifier, except for moving digits: conv3d_deepnetA_ucf.npz with --mean mean2.npz, or "
    "a file made by python -m tgan_fast train-classifier"
)


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
    from tgan_fast.training.scoring import class_names

    precision = resolve_evaluation_precision(command.precision, device)
    subject = _Generated(command, device) if command.videos is None else _Given(command)
    classifier = None
    if any(KIND_OF[metric].network == "classifier" for metric in metrics):
        classifier = load_classifier(subject.classifier_path(), command.mean)
    protocol = _protocol(command, classifier)
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
        i3d=I3DFeatures(command.i3d, device) if "fvd" in metrics else None,
        inception=InceptionFeatures(command.inception, device) if "frame-fid" in metrics else None,
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
    if classifier is not None and precision != "fp32" and command.videos is None:
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
    _print(record, scores, subject.kind)
    _write(command, subject.run_folder(), record)


class _Generated:
    """Videos of a checkpoint's generator.

    Attributes:
        kind: Name of the videos.
        has: Beginning of a sentence about them.
        notices: Sentences on them.
        size: Frames of a clip, side of a frame in pixels, and channels.
    """

    kind, has, notices = "generated videos", "the generator makes", ()

    def __init__(self, command, device):
        from tgan_fast.models.sampling import refuse_non_finite
        from tgan_fast.training.checkpoint import find, open_checkpoint

        self._command = command
        self._checkpoint = open_checkpoint(find(command.checkpoint))
        self.generator = self._checkpoint.generator(command.weights).to(device)
        refuse_non_finite(self.generator, self._checkpoint.path)
        self.size = self.generator.clip_frames, self.generator.image_size, self.generator.channels

    def classifier_path(self) -> Path:
        from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER

        command, checkpoint = self._command, self._checkpoint
        if command.classifier is not None:
            return _classifier_file(command)
        if command.data is None and checkpoint.tells_data:
            # The run's own classifier, so that scores can be compared with those during its training.
            if checkpoint.config.classifier is not None:
                return Path(checkpoint.config.classifier)
            if checkpoint.config.data is None:
                return DIGITS_CLASSIFIER
        raise InputError(_NO_CLASSIFIER)

    def real_data(self, metrics):
        from tgan_fast.training import TrainingConfig
        from tgan_fast.training.dataset import open_data, with_data

        command, checkpoint = self._command, self._checkpoint
        if command.data is None and not checkpoint.tells_data:
            if metrics == ("is",):
                return None
            raise InputError(f"{checkpoint.path} does not say what it was trained on: give --data")
        return open_data(with_data(checkpoint.config or TrainingConfig(), command.data))

    def scores(self, evaluator):
        evaluator.prepare()
        return evaluator(self.generator)

    def clips_per_run(self, protocol) -> int:
        return protocol.samples

    def record(self) -> dict:
        return {
            "checkpoint": self._checkpoint.path.name,
            "iteration": self._checkpoint.iteration,
            "weights": self._checkpoint.kind(self._command.weights),
        }

    def run_folder(self) -> Path | None:
        from tgan_fast.training.checkpoint import run_folder_of

        return run_folder_of(self._checkpoint.path)


class _Given:
    """Videos from files, with the attributes and methods of `_Generated`."""

    kind, has = "videos", "there are"

    def __init__(self, command):
        from tgan_fast.data import VideoFrames

        self._command, self.notices = command, []
        paths = [path for path in (command.videos, command.data) if path is not None]
        opened = self._open_all(paths)
        longest = min(int(videos.length.max()) for videos in opened)
        if longest < FEWEST_FRAMES:
            raise InputError(f"the videos have at most {longest} frames, but scores need {FEWEST_FRAMES} or more")
        sides = [videos.frames.shape[1] for videos in opened]
        if len(set(sides)) > 1:
            raise InputError(
                f"the frames of {paths[0]} are {sides[0]} pixels high and those of {paths[1]} {sides[1]}: "
                "prepare both with the same --size"
            )
        if sides[0] not in IMAGE_SIZES:
            *sizes, last = IMAGE_SIZES
            raise InputError(
                f"the frames of {paths[0]} are {sides[0]} pixels high: prepare the videos with a --size of "
                f"{', '.join(map(str, sizes))} or {last}"
            )
        clips = [VideoFrames(videos, clip_frames=min(FRAMES, longest), image_size=sides[0]) for videos in opened]
        self._videos, self._real = clips[0], clips[1] if len(clips) == 2 else None
        if self._real is None and len(self._videos) < 4:
            raise InputError(f"{command.videos} has too few videos for two halves: give 4 or more, or give --data")
        for videos, kept in zip(opened, clips, strict=True):
            if len(videos.length) > len(kept):
                short = counted(len(videos.length) - len(kept), "video")
                self.notices.append(f"{short} of {videos.name} left out: shorter than {kept.clip_frames} frames")
        self.size = self._videos.clip_frames, sides[0], max(videos.frames.shape[3] for videos in opened)

    def _open_all(self, paths):
        """Open prepared videos; prepare the others in their size, for as long as they are open."""
        from tgan_fast.data import read_videos
        from tgan_fast.data.array_files import ARRAY_SUFFIXES
        from tgan_fast.data.clip_store import ClipStore
        from tgan_fast.data.hdf5_files import HDF5_SUFFIXES

        suffixes = ARRAY_SUFFIXES | HDF5_SUFFIXES
        opened = {
            path: read_videos(path)
            for path in paths
            if ClipStore.is_at(path) or path.suffix.lower() in suffixes or not path.exists()
        }
        size = next((videos.frames.shape[1] for videos in opened.values()), IMAGE_SIZE)
        for path in paths:
            opened[path] = opened.get(path) or self._prepare(path, size)
        return [opened[path] for path in paths]

    def _prepare(self, path, size):
        require_package("av", "evaluate needs PyAV for videos that are not prepared")
        from tgan_fast.cli.prepare import PROCESSORS, progress_bar
        from tgan_fast.data import read_videos
        from tgan_fast.preparation import prepare
        from tgan_fast.preparation.decoding import FrameFormat
        from tgan_fast.preparation.sources import recognize

        collection = recognize(path)
        # The frames stay readable after the folder is gone, since they are mapped.
        with TemporaryDirectory() as store, progress_bar(collection, path) as bar:
            result = prepare(
                collection,
                Path(store),
                FrameFormat(size, size, collection.channels),
                workers=PROCESSORS,
                fewest=FEWEST_FRAMES,
                progress=lambda _, nbytes: bar.update(nbytes),
            )
            for video in result.skipped[:1]:
                count = counted(len(result.skipped), "video")
                self.notices.append(f"{count} of {path} left out, such as {video.video}: {video.reason}")
            if not result.stored:
                raise InputError(f"no video of {path} can be used: {result.skipped[0].reason}")
            return replace(read_videos(store), name=str(path))

    def classifier_path(self) -> Path:
        if self._command.classifier is None:
            raise InputError(_NO_CLASSIFIER)
        return _classifier_file(self._command)

    def real_data(self, metrics):
        return self._real

    def scores(self, evaluator):
        if self._real is None:
            return evaluator.of_halves(self._videos)
        evaluator.prepare()
        return evaluator.of_clips(self._videos)

    def clips_per_run(self, protocol) -> int:
        from tgan_fast.metrics.real_clips import distinct_clips

        most = len(self._videos) // 2 if self._real is None else distinct_clips(self._videos)
        return min(protocol.samples, most)

    def record(self) -> dict:
        data = self._command.data
        return {"videos": str(self._command.videos), "data": None if data is None else str(data)}

    def run_folder(self) -> Path | None:
        return None


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


def _classifier_file(command) -> Path:
    from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER

    named = str(command.classifier) == "digits" and not command.classifier.exists()
    return DIGITS_CLASSIFIER if named else command.classifier


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


def _print(record, scores, kind) -> None:
    print(
        f"protocol {record['protocol']}: {record['runs']} × {record['samples']:,} {kind}, "
        f"seed {record['seed']}, {record['precision']}, classifier {record['classifier']}"
    )
    titles = {kind.name: kind.title for kind in SCORE_KINDS}
    compared = "clips of the other half" if record.get("data", "") is None else "real clips"
    for name, score in scores.items():
        real = "" if score.real is None else f"   real clips: {score.real:.4g}"
        of = "" if score.layer is None else f"   {score.layer}, against {score.real_clips:,} {compared}"
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
