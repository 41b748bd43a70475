"""The training loop: data → step → record → evaluate → sample → checkpoint."""

import traceback
from contextlib import closing, contextmanager
from pathlib import Path

from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import InputError, NonFiniteError, counted, is_out_of_memory, may_be_too_large
from tgan_fast.precision import resolve_precision
from tgan_fast.processes import joined
from tgan_fast.provenance import provenance
from tgan_fast.stop_signals import stop_signals
from tgan_fast.training.brief_waits import BriefWaits
from tgan_fast.training.build import build_step
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.dataset import classes_of, fingerprint_and_summary, open_data, open_run_feed
from tgan_fast.training.fine_tuning import start_from
from tgan_fast.training.memory import largest_batch, refuse_too_large_a_batch, too_large
from tgan_fast.training.resume import changed_settings, notices_on_data, open_saved, restore_step, take_over
from tgan_fast.training.run_folder import RunFolder
from tgan_fast.training.scoring import open_evaluator
from tgan_fast.training.session import Session
from tgan_fast.training.step import TrainingStep


def train(
    config: TrainingConfig,
    out: str | Path,
    *,
    dataset: ClipDataset | VideoFrames | None = None,
    resume: str | Path | None = None,
) -> TrainingStep:
    """Train for `config.steps` iterations, or until SIGINT, SIGTERM or SIGHUP; then save a checkpoint.

    Processes that torchrun started train together, each on its share of every batch; the first one writes files.

    Args:
        config: Settings of the run.
        out: Folder of the run; `RunFolder` lists its files.
        dataset: Data set to train on; by default the one that `config` describes.
        resume: Checkpoint to continue from; on a CPU bit for bit.

    Returns:
        The step in its last state; `iteration` is the number of iterations done.

    Raises:
        InputError: A setting, a file or the data does not fit, which is checked before the first iteration; or later a
            file cannot be written or memory runs out. Earlier checkpoints are then safe.
        NonFiniteError: A loss or a weight is no longer finite. No checkpoint holds such weights.
        RuntimeError: The processes' networks are no longer equal.
    """
    with joined(config.device) as (processes, device):
        _check_processes(config, processes)
        try:
            resume = None if resume is None else Path(resume)
            return _train(config, Path(out), dataset, resume, processes, device)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) or may_be_too_large(error)):
                raise
            problem = error
        # Outside the except block, where nothing of the step is alive and its memory is free.
        traceback.clear_frames(problem.__traceback__)
        fitting, memory = largest_batch(config, device, build_step, processes.size), is_out_of_memory(problem)
        if fitting >= config.batch_size and not memory:
            raise problem
        raise InputError(too_large(config, device, fitting, memory=memory)) from problem


def _train(config, out, dataset, resume, processes, device):
    # Check everything before anything is written.
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    saved = None if resume is None else open_saved(resume, device)
    dataset = open_data(config) if dataset is None else dataset
    data_fingerprint, summary = fingerprint_and_summary(dataset)
    if config.conditional:
        config = config.model_copy(update={"classes": classes_of(config, dataset)})
    changes = [] if saved is None else changed_settings(config, saved["config"])
    feed = open_run_feed(config, dataset, device, processes)
    refuse_too_large_a_batch(config, device, build_step)
    step = build_step(config, device, read=feed.read, processes=processes)
    if saved is not None:
        restore_step(step, saved["step"], resume)
    elif config.init_from is not None:
        changes = start_from(step, config)

    folder = evaluator = None
    notices = [*changes, *notices_on_data(config, dataset, data_fingerprint, saved)]
    with _agreed(processes):
        if processes.rank == 0:
            evaluator = open_evaluator(config, dataset, device) if config.evaluate_every else None
            folder = RunFolder(out, config.keep_checkpoints)
    session = Session(config, step, folder, evaluator, processes, dataset, data_fingerprint)
    try:
        with _agreed(processes):
            if folder is not None:
                notices += take_over(folder, resume, step.iteration)
                folder.start(config, provenance(device), step.iteration)
        with (
            stop_signals() as stop,
            session.progress(out) as bar,
            BriefWaits(device),
            closing(feed.batches(step.iteration)) as batches,
        ):
            session.begin(bar, filter(None, (summary, feed.description, *notices)))
            for batch in batches:
                if step.iteration >= config.steps or session.stops(stop):
                    break
                session.iterate(batch)
                if step.iteration % config.log_interval == 0:
                    session.log()
                if config.evaluate_every and step.iteration % config.evaluate_every == 0:
                    session.evaluate()
                # After the evaluation, so that the curves include its scores.
                if step.iteration % config.sample_interval == 0:
                    session.sample()
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
def _agreed(processes):
    """Raise an error in every process if the block raised one in any, since the others would wait for it forever."""
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    if processes.any(problem is not None):
        raise problem or InputError("process 0 cannot start; its own error says why")


def _remedy(folder, diverged):
    if folder is None:
        return "process 0 names the last good checkpoint"
    latest = folder.checkpoints.before_divergence() if diverged else folder.checkpoints.latest()
    if latest is None:
        return "no earlier checkpoint is left" if diverged else "no checkpoint had been written yet"
    resumed = latest if diverged else folder.path
    return f"the last good checkpoint is {latest}: continue with --resume {resumed}"


def _check_processes(config, processes):
    if config.batch_size % processes.size:
        raise InputError(
            f"batch_size is {config.batch_size}, but {processes.size} processes must share it evenly: choose a multiple"
        )
    if config.batch_size == processes.size and not config.sync_batch_norm:
        raise InputError(
            f"batch_size {config.batch_size} is one video for each process, but batch norm needs at least 2: "
            "choose a larger one, or sync_batch_norm"
        )
