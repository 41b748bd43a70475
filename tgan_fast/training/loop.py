"""The training loop: data → step → record → sample → checkpoint, until done, stopped or broken."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from tgan_fast.data import ClipDataset, ClipLoader, MovingDigits, to_clips, to_videos
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.models import FRAMES, IMAGE_SIZE, VideoDiscriminator, VideoGenerator
from tgan_fast.models.sampling import draw_latents, sample_videos, undisturbed
from tgan_fast.training.checkpoint import iteration_of, load_strictly, read_run
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.devices import resolve_device
from tgan_fast.training.provenance import provenance
from tgan_fast.training.run_folder import RunFolder
from tgan_fast.training.step import TrainingStep

_PREVIEWS = 16


def train(
    config: TrainingConfig,
    out: Path,
    *,
    dataset: ClipDataset | None = None,
    resume: Path | None = None,
    score: Callable[[VideoGenerator], float] | None = None,
) -> TrainingStep:
    """Train until `config.steps` iterations are done, or until SIGINT or SIGTERM, which save first.

    Args:
        config: see there.
        out: the run's folder (`RunFolder` lists what it gets).
        dataset: moving digits where none is given.
        resume: a checkpoint to continue from, exactly where it was made.
        score: judges the generator (in evaluation mode) at every checkpoint, the higher the better; the best one is
            kept as `checkpoints/best.pt`.

    Returns:
        The step in its last state; its `iteration` tells how far it came.

    Raises:
        InputError: something given does not fit; found before the first iteration, but for a file that cannot be
            written later, by when older checkpoints are safe.
        NonFiniteError: a loss or a weight is no longer finite; no checkpoint holds such weights.
    """
    # Everything that can be wrong is found here, before anything is written.
    device = resolve_device(config.device)
    if dataset is None:
        dataset = MovingDigits(digits=config.digits, channels=config.channels, seed=config.seed)
    _check_clip(dataset, config)
    loader = ClipLoader(dataset, config.batch_size, seed=config.seed, workers=config.workers)
    step = build_step(config, device)
    if resume is not None:
        _restore(step, resume)

    folder = RunFolder(out, config.keep_checkpoints)
    if resume is not None:
        _refuse_to_fall_behind(folder, step.iteration)
    try:
        folder.start(config, provenance(device), step.iteration)
        session = _Session(config, step, folder, score)
        with _stop_signals() as stop, _progress(out, config.steps, step.iteration) as bar:
            for clips, _ in loader.batches(start=step.iteration):
                if step.iteration >= config.steps or stop.is_set():
                    break
                session.observe(step(to_videos(clips, device)))
                bar.update()
                if step.iteration % config.log_interval == 0:
                    session.log(bar)
                if step.iteration % config.sample_interval == 0:
                    session.sample()
                if step.iteration % config.checkpoint_interval == 0:
                    session.checkpoint()
            session.finish(bar)
    except OSError as error:
        problem = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise InputError(f"stopped after {step.iteration} iterations: {problem}; {_remedy(folder)}") from error
    finally:
        folder.close()
    return step


def build_step(config: TrainingConfig, device: torch.device) -> TrainingStep:
    """The networks and the step of a run at iteration 0; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = VideoGenerator(config.width, config.latent_dim, config.channels)
        discriminator = VideoDiscriminator(config.width, config.channels)
    return TrainingStep(
        generator.to(device),
        discriminator.to(device),
        learning_rate=config.learning_rate,
        clip_interval=config.clip_interval,
        shared_fakes=config.shared_fakes,
        ema_decay=config.ema_decay,
        seed=config.seed,
    )


class _Session:
    """What one call of `train` keeps between iterations, and the stages of its loop."""

    def __init__(self, config, step, folder, score):
        self.config, self.step, self.folder, self.score = config, step, folder, score
        self.scalars = []
        self.seconds_before = max((line["seconds"] for line in folder.stats()), default=0.0)
        self.started = self.logged = time.perf_counter()
        self.sampled = self.saved = None
        self.previews = draw_latents(_PREVIEWS, config.latent_dim, config.seed)

    def observe(self, scalars: dict[str, torch.Tensor]) -> None:
        # Kept on the device: reading them would make the host wait in every iteration.
        self.scalars.append(scalars)

    def log(self, bar: tqdm) -> None:
        if not self.scalars:
            return
        names = list(self.scalars[0])
        values = torch.stack([torch.stack([row[name] for name in names]) for row in self.scalars]).double().cpu()
        first = self.step.iteration - len(self.scalars)
        for offset, row in enumerate(values.tolist()):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise NonFiniteError(f"{name} is {value} at iteration {first + offset}: {_calmer(self.folder)}")
        if self.step.non_finite.item():
            raise NonFiniteError(
                f"a weight of the discriminator is no longer finite after {self.step.iteration} iterations: "
                f"{_calmer(self.folder)}"
            )
        now = time.perf_counter()
        rate = len(self.scalars) * self.config.batch_size / (now - self.logged)
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        seconds = self.seconds_before + now - self.started
        self.folder.record({"iteration": self.step.iteration, **means, "videos_per_second": rate, "seconds": seconds})
        bar.set_postfix(
            D=f"{means['loss_discriminator']:.3f}", G=f"{means['loss_generator']:.3f}", videos=f"{rate:.0f}/s"
        )
        self.scalars, self.logged = [], now

    def sample(self) -> None:
        clips = to_clips(sample_videos(self._judged(), self.previews))
        self.folder.write_samples(clips.numpy(), self.step.iteration)
        self.sampled = self.step.iteration

    def checkpoint(self) -> None:
        _check_weights(self.step, self.folder)
        score = None if self.score is None else self._score()
        content = {
            "config": self.config.model_dump(),
            "device": self.step.device.type,
            "step": self.step.state_dict(),
        }
        self.folder.checkpoints.save(content, self.step.iteration, score)
        self.saved = self.step.iteration

    def finish(self, bar: tqdm) -> None:
        self.log(bar)
        if self.saved != self.step.iteration:
            self.checkpoint()
        if self.sampled != self.step.iteration:
            self.sample()
        self.folder.plot()

    def _score(self):
        generator = self._judged()
        with undisturbed(generator):
            return float(self.score(generator))

    def _judged(self):
        return self.step.generator if self.step.ema is None else self.step.ema


def _remedy(folder):
    latest = folder.checkpoints.latest()
    if latest is None:
        return "no checkpoint had been written yet"
    return f"the last good checkpoint is {latest}, from which --resume {folder.path} goes on"


def _calmer(folder):
    return f"try a lower learning_rate; {_remedy(folder)}"


def _check_weights(step, folder):
    for network in (step.generator, step.discriminator):
        for name, tensor in network.state_dict().items():
            if not tensor.isfinite().all():
                raise NonFiniteError(
                    f"{name} of the {type(network).__name__} is not finite after iteration {step.iteration - 1}: "
                    f"{_calmer(folder)}"
                )


def _restore(step, path):
    content = read_run(path)
    state = content["step"]
    device = step.device.type
    if content["device"] != device:
        raise InputError(f"{path} was made on {content['device']} and continues exactly only there, not on {device}")
    load_strictly(step.generator, state["generator"], path)
    load_strictly(step.discriminator, state["discriminator"], path)
    if step.ema is not None and "ema" not in state:
        raise InputError(f"{path} was made without an average of the weights, so ema_decay cannot be set now")
    step.load_state_dict(state)


def _refuse_to_fall_behind(folder, iteration):
    latest = folder.checkpoints.latest()
    if latest is not None and iteration_of(latest) > iteration:
        raise InputError(
            f"{folder.path} has come further, to {latest.name}: resume from there, or choose a new folder with --out"
        )


def _check_clip(dataset: ClipDataset, config: TrainingConfig) -> None:
    clip = dataset[0][0] if len(dataset) else None
    wanted = (FRAMES, IMAGE_SIZE, IMAGE_SIZE, config.channels)
    if clip is None:
        raise InputError("the data set has no clips")
    if clip.dtype != "uint8" or clip.shape != wanted:
        raise InputError(
            f"training takes clips of uint8 {list(wanted)} (frames, height, width, channels), "
            f"but the data set yields {clip.dtype} {list(clip.shape)}"
        )


def _progress(out: Path, steps: int, done: int) -> tqdm:
    return tqdm(desc=str(out), total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as if this were not there."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(*_):
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_):
        stop.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
