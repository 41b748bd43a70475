"""The training loop: data → step → record → sample → checkpoint, until done, stopped or broken."""

import traceback
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from tgan_fast.data import ClipDataset, VideoFrames, open_feed
from tgan_fast.errors import InputError, NonFiniteError, counted, is_out_of_memory, may_be_too_large
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.stop_signals import stop_signals
from tgan_fast.training.brief_waits import BriefWaits
from tgan_fast.training.build import build_step
from tgan_fast.training.changes import changed_settings
from tgan_fast.training.checkpoint import first_not_finite, iteration_of, load_strictly, read_run, run_folder_of
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.data import classes_of, open_data
from tgan_fast.training.memory import largest_batch, refuse_too_large_a_batch, too_large
from tgan_fast.training.processes import joined
from tgan_fast.training.provenance import provenance
from tgan_fast.training.run_folder import RunFolder
from tgan_fast.training.scoring import open_evaluator
from tgan_fast.training.session import Session
from tgan_fast.training.step import TrainingStep


def train(
    config: TrainingConfig,
    out: Path,
    *,
    dataset: ClipDataset | VideoFrames | None = None,
    resume: Path | None = None,
) -> TrainingStep:
    """Train until `config.steps` iterations are done, or until SIGINT, SIGTERM or SIGHUP, which save first.

    Started by torchrun, its processes train together, each on a part of every batch; the first one writes.

    Args:
        config: see there.
        out: the run's folder (`RunFolder` lists what it gets).
        dataset: what `config` tells of where none is given.
        resume: a checkpoint to continue from, exactly where it was made.

    Returns:
        The step in its last state; its `iteration` tells how far it came.

    Raises:
        InputError: something given does not fit; found before the first iteration, but for a file that cannot be
            written and memory that runs out later, by when older checkpoints are safe.
        NonFiniteError: a loss or a weight is no longer finite; no checkpoint holds such weights.
        RuntimeError: the processes' networks are no longer equal.
    """
    with joined(config.device) as (processes, device):
        _check_processes(config, processes)
        try:
            return _train(config, out, dataset, resume, processes, device)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) or may_be_too_large(error)):
                raise
            problem = error
        # Here, where nothing of the step is alive any more.
        traceback.clear_frames(problem.__traceback__)
        fitting, memory = largest_batch(config, device, build_step, processes.size), is_out_of_memory(problem)
        if fitting >= config.batch_size and not memory:
            raise problem
        raise InputError(too_large(config, device, fitting, memory=memory)) from problem


def _train(config, out, dataset, resume, processes, device):
    # Everything that can be wrong is found here, before anything is written.
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    saved = None if resume is None else _open_saved(resume, device)
    dataset = open_data(config) if dataset is None else dataset
    if config.conditional:
        config = config.model_copy(update={"classes": classes_of(config, dataset)})
    changes = [] if saved is None else changed_settings(config, saved["config"])
    feed = open_feed(
        dataset,
        batch_size=config.batch_size,
        batches_per_step=config.critic_steps,
        channels=config.channels,
        frames=config.frames,
        image_size=config.image_size,
        labeled=config.conditional,
        seed=config.seed,
        workers=config.workers,
        device=device,
        dtype=compute_dtype(config.precision, torch.float32),
        rank=processes.rank,
        world_size=processes.size,
    )
    refuse_too_large_a_batch(config, device, build_step)
    step = build_step(config, device, read=feed.read, processes=processes)
    if saved is not None:
        _restore(step, saved["step"], resume)

    folder = evaluator = None
    notices = [*changes, *_notices_on_data(config, dataset, saved)]
    with _agreed(processes, device):
        if processes.rank == 0:
            evaluator = open_evaluator(config, dataset, device) if config.evaluate_every else None
            folder = RunFolder(out, config.keep_checkpoints)
    session = Session(config, step, folder, evaluator, processes, getattr(dataset, "fingerprint", None))
    try:
        with _agreed(processes, device):
            if folder is not None:
                notices += _take_over(folder, resume, step.iteration)
                folder.start(config, provenance(device), step.iteration)
        with (
            stop_signals() as stop,
            session.progress(out) as bar,
            BriefWaits(device),
            closing(feed.batches(step.iteration)) as batches,
        ):
            session.begin(bar, filter(None, (getattr(dataset, "summary", None), feed.description, *notices)))
            for batch in batches:
                if step.iteration >= config.steps or session.stops(stop):
                    break
                session.iterate(batch)
                if step.iteration % config.log_interval == 0:
                    session.log()
                if step.iteration % config.sample_interval == 0:
                    session.sample()
                if config.evaluate_every and step.iteration % config.evaluate_every == 0:
                    session.evaluate()
                if step.iteration % config.checkpoint_interval == 0:
                    session.checkpoint()
            session.finish()
    except OSError as error:
        problem = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise InputError(
            f"stopped after {counted(step.iteration, 'iteration')}: {problem}; {_remedy(folder, session.diverged)}"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}: try a lower learning_rate; {_remedy(folder, session.diverged)}") from None
    finally:
        session.close()
        step.leave_processes()
    return step


@contextmanager
def _agreed(processes, device):
    """Let every process go on from here, or none: one that waited for another in vain would never end."""
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    if any(processes.gather(int(problem is not None), device)):
        raise problem or InputError("process 0 cannot begin, and says why")


def _remedy(folder, diverged):
    if folder is None:
        return "process 0 says which checkpoint is the last good one"
    latest = folder.checkpoints.before_divergence() if diverged else folder.checkpoints.latest()
    if latest is None:
        return "no checkpoint from before is left" if diverged else "no checkpoint had been written yet"
    resumed = latest if diverged else folder.path
    return f"the last good checkpoint is {latest}, from which --resume {resumed} goes on"


def _check_processes(config, processes):
    if config.batch_size % processes.size:
        raise InputError(
            f"batch_size is {config.batch_size}, but {processes.size} processes share it evenly: choose a multiple"
        )
    if config.batch_size == processes.size and not config.sync_batch_norm:
        raise InputError(
            f"batch_size {config.batch_size} is one video for each process, but batch norm needs at least 2: "
            "choose a larger one, or sync_batch_norm"
        )


def _open_saved(path, device):
    """Return the content of a checkpoint to resume from."""
    saved = read_run(path)
    if saved.get("device") not in (device.type, None):
        made_on = saved["device"]
        raise InputError(f"{path} was made on {made_on} and continues exactly only there, not on {device.type}")
    return saved


def _restore(step, state, path):
    load_strictly(step.generator, state["generator"], path)
    load_strictly(step.discriminator, state["discriminator"], path)
    if broken := first_not_finite(state):
        raise InputError(f"{path} is of no use: {broken} is not finite; resume an earlier one")
    if step.ema is not None:
        if "ema" not in state:
            raise InputError(f"{path} was made without an average of the weights, so ema_decay cannot be set now")
        load_strictly(step.ema, state["ema"], path)
    try:
        step.load_state_dict(state)
    except ValueError as error:
        raise InputError(f"the optimizers in {path} do not fit: {error}") from None
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} is damaged: the state of its optimizers or random numbers is incomplete") from None


def _notices_on_data(config, dataset, saved):
    data_fingerprint = None if saved is None else saved.get("data")
    if data_fingerprint not in (None, getattr(dataset, "fingerprint", None)):
        yield "the data is not what it was when the checkpoint was made: the run goes on, but not as it would have"
    names = dataset.videos.class_names if isinstance(dataset, VideoFrames) else ()
    if names and not config.conditional:
        yield f"the videos have {len(names):,} classes, which this run does not use: see --conditional"


def _take_over(folder, resume, iteration):
    """Check that the locked folder may be written to, and yield a notice for every repair.

    Raises:
        InputError: it holds another run, or has come further than the checkpoint.
    """
    own = None if resume is None else run_folder_of(resume)
    if own is None or own.resolve() != folder.path.resolve():
        if folder.checkpoints.paths():
            raise InputError(
                f"{folder.path} holds another run: continue it with --resume {folder.path}, or choose another --out"
            )
        if earlier := folder.checkpoints.set_best_aside():
            yield f"the best checkpoint of a run that left no other one was set aside: {earlier}"
        return
    for damaged in folder.checkpoints.set_damaged_aside():
        yield f"a damaged checkpoint was set aside: {damaged}"
    latest = folder.checkpoints.latest()
    if latest is not None and iteration_of(latest) > iteration:
        raise InputError(
            f"{folder.path} has come further, to {latest.name}: resume from there, or choose a new folder with --out"
        )
