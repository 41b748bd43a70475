"""The stages of the training loop: iterate, log, evaluate, sample, checkpoint, finish."""

import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from tgan_fast.data import Batch
from tgan_fast.errors import NonFiniteError, counted, printable
from tgan_fast.metrics.score_kinds import SCORE_KINDS
from tgan_fast.models.sampling import Sampler, draw_inputs, draw_labels
from tgan_fast.reports.number_format import format_number
from tgan_fast.training.background import Background, Snapshot
from tgan_fast.training.checkpoint import first_not_finite
from tgan_fast.training.dataset import class_name, clips_to_show
from tgan_fast.training.scalar_log import Interval, ScalarLog
from tgan_fast.training.scoring import is_better
from tgan_fast.training.state import SCALARS
from tgan_fast.video_files import TitledGrid

_SAMPLE_COUNT, _REAL_COUNT = 16, 4
_NETWORKS = "generator", "discriminator"
# Largest absolute weight of a run that does not diverge; in runs that work, weights stay below ten.
_DIVERGED = 1000.0


class Session:
    """State that one call of `train` keeps between iterations, and the stages of its loop.

    Args:
        config: Settings of the run.
        step: Training step.
        folder: Folder of the run in the process that writes; None in the others.
        evaluator: Evaluator of the generator; None for none, and in processes that do not write.
        processes: Processes that train together.
        dataset: Data set of the run.
        data: Fingerprint of the data, for checkpoints.
    """

    def __init__(self, config, step, folder, evaluator, processes, dataset, data):
        self.config, self.step, self.folder, self.evaluator = config, step, folder, evaluator
        self.processes, self.dataset, self.data = processes, dataset, data
        self.background = Background(step.device.type == "cuda")
        self.seconds = 0.0
        self.scalars = self.sampled = self.saved = self.sampler = self.bar = self.best = self.real = None
        self.stopping = self.diverged = False

    def progress(self, out: Path) -> tqdm:
        """Return the progress bar; only the process with a folder shows it."""
        return tqdm(
            desc=printable(str(out)), total=self.config.steps, initial=self.step.iteration, unit="step",
            dynamic_ncols=True, smoothing=0.05, disable=self.folder is None,
        )  # fmt: skip

    def begin(self, bar: tqdm, notices: Iterable[str]) -> None:
        """Print notices, read what an earlier start recorded, and prepare the evaluator."""
        self.bar = bar
        if self.folder is not None:
            for notice in notices:
                self._print_notice(notice)
            weight = float(self.step.largest_weight())
            if weight > _DIVERGED:
                self.diverged = True
                diverged = f"the checkpoint has diverged, with a weight of {weight:.1e}"
                self._print_notice(f"warning: {diverged}: resume an earlier one")
            self.seconds = max((line["seconds"] for line in self.folder.stats()), default=0.0)
            # Clips are read before the feed's thread starts, because with one worker a data set may not expect two
            # threads.
            clips, labels = clips_to_show(self.dataset, _REAL_COUNT, self.config)
            self.real = TitledGrid("real", clips, self._captions(labels))
        if self.evaluator is not None:
            self.best = self.folder.checkpoints.best_scores(self.evaluator.description)
            every = self.config.evaluate_every
            if self.step.iteration // every < self.config.steps // every:
                self.evaluator.prepare()
        self.scalars = ScalarLog()

    def iterate(self, batch: Batch) -> None:
        """Train for one iteration."""
        self.step(*batch)
        self.scalars.append(self.step.scalars)
        self.bar.update()
        self._record_interval(self.scalars.take())
        self.background.check()

    def stops(self, requested: threading.Event) -> bool:
        """Return whether to stop because a signal asked for it."""
        # Several processes agree when they log, so that all stop after the same iteration.
        if self.processes.size == 1:
            return requested.is_set()
        if self.step.iteration % self.config.log_interval == 0:
            self.stopping = self.processes.any(requested.is_set())
        return self.stopping

    def log(self) -> None:
        """End an interval: copy its scalars to the host, and record the interval before."""
        # The previous interval arrived long ago: waiting for it only keeps the host from running far ahead of the GPU.
        self._record_interval(self.scalars.take(wait=True))
        self.scalars.end_interval(self.step.iteration, self.step.non_finite, self.step.largest_weight())
        self._record_interval(self.scalars.take())
        if self.processes.size > 1:
            self.step.check_equality()

    def flush(self) -> None:
        """Record all iterations so far, waiting for the device."""
        self.log()
        self._record_interval(self.scalars.take(wait=True))

    def _record_interval(self, interval: Interval | None) -> None:
        if interval is None:
            return
        interval.check(SCALARS)
        self.seconds += interval.seconds
        rate = len(interval.rows) * self.config.batch_size * self.config.critic_steps / interval.seconds
        means = dict(zip(SCALARS, interval.means(), strict=True))
        if self.folder is not None:
            self.folder.record(
                {"iteration": interval.last, **means, "videos_per_second": rate, "seconds": self.seconds}
            )
        self.bar.set_postfix(
            D=f"{means['loss_discriminator']:.3f}", G=f"{means['loss_generator']:.3f}", videos=f"{rate:.0f}/s"
        )
        if interval.largest_weight > _DIVERGED and not self.diverged:
            # An earlier checkpoint may not be written yet.
            self.background.wait()
            self._warn_of_divergence(interval.largest_weight, interval.first, interval.last)

    def _warn_of_divergence(self, weight, sound, iteration):
        """Warn once that a weight is too large after `iteration` iterations, but was not after `sound`."""
        if self.folder is None or self.diverged:
            return
        self.diverged = True
        kept = self.folder.checkpoints.keep_before(sound)
        earlier = "no earlier checkpoint is left" if kept is None else f"{kept} is an earlier checkpoint"
        self._print_notice(
            f"warning: the run diverges, with a weight of {weight:.1e} after {counted(iteration, 'iteration')}: try a "
            f"lower learning_rate; {earlier}"
        )

    def _print_notice(self, text):
        self.bar.write(printable(text), file=sys.stderr)

    def evaluate(self) -> None:
        """Record the scores of the generator, and keep the best checkpoint."""
        self.flush()
        if self.folder is None:
            return
        begin = time.perf_counter()
        scores = {name: score.mean for name, score in self.evaluator(self._generator_to_sample()).items()}
        self.scalars.leave_out(time.perf_counter() - begin)
        self.folder.record(
            {"iteration": self.step.iteration, "seconds": self.seconds, **scores, **self.evaluator.description}
        )
        shown = [f"{kind.title} {format_number(scores[kind.name])}" for kind in SCORE_KINDS if kind.name in scores]
        self._print_notice(f"iteration {self.step.iteration:,}: {', '.join(shown)}")
        if is_better(scores, self.best, self.config.best_metric):
            self.best = scores
            self.background.submit(self._write_best, Snapshot(self.step.state_dict()), self.step.iteration, scores)

    def sample(self) -> None:
        """Write a GIF of real and generated videos, the latter from fixed latents, and redraw the curves."""
        if self.folder is None:
            return
        begin = time.perf_counter()
        generator = self._generator_to_sample()
        if self.sampler is None:
            self.sampler = Sampler(
                generator,
                batch_size=_SAMPLE_COUNT,
                precision=self.step.precision,
                cuda_graph=self.config.cuda_graph,
            )
        self.sampler.refresh()
        clips = self.sampler(draw_inputs(generator, _SAMPLE_COUNT, self.config.seed))
        labels = draw_labels(generator, _SAMPLE_COUNT, self.config.seed)
        captions = [] if labels is None else self._captions(labels.tolist())
        title = f"generated, iteration {self.step.iteration:,}"
        self.background.submit(self._write_samples, TitledGrid(title, clips.numpy(), captions), self.step.iteration)
        self.sampled = self.step.iteration
        if self.step.device.type == "cpu":
            # A GPU continues training meanwhile.
            self.scalars.leave_out(time.perf_counter() - begin)

    def _captions(self, labels):
        return [class_name(self.dataset, label) for label in labels] if self.config.conditional else []

    def _write_samples(self, generated, iteration):
        path = self.folder.write_samples([self.real, generated], iteration)
        self._print_notice(f"iteration {iteration:,}: {path}")
        self.folder.plot()

    def checkpoint(self) -> None:
        """Write a checkpoint in the background."""
        if self.folder is None:
            return
        self.background.submit(self._write_checkpoint, Snapshot(self.step.state_dict()), self.step.iteration)
        self.saved = self.step.iteration

    def _write_checkpoint(self, snapshot, iteration):
        self.folder.checkpoints.save(self._checkpoint_content(snapshot, iteration), iteration)

    def _write_best(self, snapshot, iteration, scores):
        content = self._checkpoint_content(snapshot, iteration)
        self.folder.checkpoints.save_best(content, scores, self.evaluator.description)

    def _checkpoint_content(self, snapshot, iteration):
        state = snapshot.on_cpu()
        if broken := first_not_finite(state):
            raise NonFiniteError(f"{broken} is not finite after {counted(iteration, 'iteration')}")
        names = [(key, name) for key in _NETWORKS for name, _ in getattr(self.step, key).named_parameters()]
        largest = max(float(state[key][name].abs().max()) for key, name in names)
        if largest > _DIVERGED:
            # Warn before this checkpoint replaces an older one.
            self._warn_of_divergence(largest, iteration - 1, iteration)
        return {
            "config": self.config.model_dump(),
            "device": self.step.device.type,
            "data": self.data,
            "step": state,
        }

    def finish(self) -> None:
        """Record, save and sample the last iteration, wait for the background, and draw the curves."""
        self.flush()
        if self.saved != self.step.iteration:
            self.checkpoint()
        if self.sampled != self.step.iteration:
            self.sample()
        self.background.wait()
        if self.folder is not None:
            self.folder.plot()

    def close(self) -> None:
        """End the background thread and release the folder."""
        self.background.close()
        self.sampler = None
        if self.folder is not None:
            self.folder.close()

    def _generator_to_sample(self):
        return self.step.generator if self.step.ema is None else self.step.ema
