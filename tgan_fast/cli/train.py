"""Train TGAN: `python -m tgan_fast.train --help`."""

import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tgan_fast.cli.options import KeepMemory, OptionError, parse, parse_known
from tgan_fast.errors import InputError, counted, printable
from tgan_fast.files import lock
from tgan_fast.training.config import OF_DIGITS, PATHS, PRESETS, TrainingConfig, default_preset, read_yaml

_PROGRAM = "python -m tgan_fast.train"
_RUNS = Path("runs")
# Settings of presets that suit moving digits, and are left out for other data.
_FOR_DIGITS = {*OF_DIGITS, "frames", "image_size", "evaluate_every", "evaluate_samples"}
# Settings that no preset has, or whose recorded values depend on the device or the data.
_NOT_OF_PRESETS = {"data", "axes", "digit_images", "classifier", "channels", "classes", "precision", "device"}


@dataclass
class TrainCommand:
    """Train TGAN on videos or moving digits, and write samples, plots and checkpoints to a folder.

    A setting comes from the first of these that has it: the command line, the --config file, the resumed checkpoint,
    the --preset.
    """

    training: tyro.conf.OmitArgPrefixes[TrainingConfig]
    preset: Literal[("auto", *PRESETS)] = "auto"
    """Set of defaults: paper, or a related system such as authors;
    tiny, tiny-… and quick: one to three minutes on a CPU with moving digits; digits: the generator in the package;
    auto: paper on a GPU; without one, quick for moving digits and tiny for other data.
    This help shows the defaults of --preset (auto: paper) and --config."""
    config: Path | None = None
    """YAML file of settings, such as config.yaml of an earlier run."""
    out: Path | None = None
    """Folder of the run; by default the next number in runs/."""
    resume: str | None = None
    """Run folder or checkpoint to resume exactly; auto: the newest in --out (by default in runs/), if there is one."""
    keep_memory: KeepMemory = True


@dataclass
class _Sources:
    """Options that decide the other options' defaults."""

    preset: str = "auto"
    config: Path | None = None
    out: Path | None = None
    resume: str | None = None
    data: str | None = None
    axes: str | None = None
    init_from: str | None = None


def main(arguments: Sequence[str]) -> None:
    command, checkpoint = _read_command(arguments)
    from tgan_fast import allocator
    from tgan_fast.devices import resolve_device
    from tgan_fast.training.loop import train

    if command.keep_memory and resolve_device(command.training.device).type == "cpu":
        allocator.keep_memory()
    with _output_folder(command, checkpoint) as out:
        step = train(_with_absolute_paths(command.training, checkpoint), out, resume=checkpoint)
    if os.environ.get("RANK", "0") != "0":
        return
    done = counted(step.iteration, "iteration")
    if step.iteration < command.training.steps:
        print(f"stopped and saved after {done}; resume with:")
        print(f"  {_PROGRAM} --resume {shlex.quote(str(out))}")
    else:
        gif = out / "samples" / f"{step.iteration:08d}.gif"
        print(printable(f"done: {done}; look at {gif} and {out / 'loss.png'}"))
        _print_next_commands(command.training, out)


def _print_next_commands(config: TrainingConfig, out: Path) -> None:
    run = printable(shlex.quote(str(out)))
    # Scores of other videos need a classifier.
    scored = config.data is None
    print(f"next, sample more videos, or {'score them' if scored else 'make a page of the run'}:")
    print(f"  python -m tgan_fast sample --checkpoint {run} --out videos.gif")
    print(f"  python -m tgan_fast {f'evaluate --checkpoint {run}' if scored else f'report {run}'}")


def _read_command(arguments) -> tuple[TrainCommand, Path | None]:
    """Return the options, and the checkpoint to resume."""
    known = [argument for argument in arguments if argument not in ("-h", "--help")]
    sources, _ = parse_known(_Sources, known, prog=_PROGRAM)
    # Only PyTorch knows whether there is a GPU, and what a checkpoint or a data file holds. Help shows defaults that
    # depend on none of these, and wrong options are refused before PyTorch is imported.
    preset = "paper" if sources.preset == "auto" else sources.preset
    given = {} if sources.config is None else read_yaml(sources.config)
    try:
        _parse_with_defaults(_build_config(PRESETS.get(preset, {}) | given, sources), arguments)
    except OptionError:
        raise
    except InputError:
        # Options that do not fit these defaults may fit the final ones.
        pass
    checkpoint = _find_checkpoint(sources)
    command = _parse_command(sources, checkpoint, arguments)
    if checkpoint is not None and sources.preset != "auto":
        _refuse_another_preset(command.training, _parse_command(sources, None, arguments).training, sources.preset)
    return command, checkpoint


def _parse_command(sources, checkpoint, arguments) -> TrainCommand:
    return _parse_with_defaults(_default_config(sources, checkpoint), arguments)


def _parse_with_defaults(defaults, arguments) -> TrainCommand:
    return parse(TrainCommand, arguments, default=TrainCommand(defaults), prog=_PROGRAM)


def _refuse_another_preset(resumed, new, preset):
    """Raise an InputError if the resumed run's settings differ from the preset, since the preset would be ignored."""
    resumed, new = (config.model_dump(exclude=_NOT_OF_PRESETS) for config in (resumed, new))
    for name, value in new.items():
        if value != resumed[name]:
            raise InputError(
                f"--preset {preset} has {name} {value}, but the resumed run has {resumed[name]}: leave out --preset"
            )


@contextmanager
def _output_folder(command, checkpoint) -> Iterator[Path]:
    """Yield the folder of the run; a new one is removed afterwards if nothing was written to it."""
    from tgan_fast.training.checkpoint import run_folder_of

    own = checkpoint and run_folder_of(checkpoint)
    if command.out or own:
        yield command.out or own
        return
    preset = default_preset(command.training.data) if command.preset == "auto" else command.preset
    out = _new_folder(preset)
    try:
        yield out
    finally:
        with suppress(OSError):
            out.rmdir()
            _RUNS.rmdir()


def _with_absolute_paths(config, checkpoint):
    """Return settings with which a run can be resumed from anywhere."""
    from tgan_fast.training.checkpoint import find

    paths = {name: getattr(config, name) for name in PATHS}
    # A resumed run does not read the file, which may be gone.
    if config.init_from is not None and checkpoint is None:
        paths["init_from"] = find(Path(config.init_from))
    return config.model_copy(update={name: path and str(Path(path).absolute()) for name, path in paths.items()})


def _find_checkpoint(sources: _Sources) -> Path | None:
    if sources.resume is None:
        return None
    from tgan_fast.training.checkpoint import find, latest_of_run

    if sources.resume == "auto":
        folder = sources.out or max(filter(latest_of_run, _numbered_folders()), default=None)
        return find(folder) if folder and latest_of_run(folder) else None
    return find(Path(sources.resume))


def _default_config(sources: _Sources, checkpoint: Path | None) -> TrainingConfig:
    given = {} if sources.config is None else read_yaml(sources.config)
    for name in ("data", "axes", "init_from"):
        if getattr(sources, name) is not None:
            given[name] = getattr(sources, name)
    if checkpoint is not None:
        from tgan_fast.training.checkpoint import read_run

        values = dict(read_run(checkpoint)["config"])
    else:
        preset = default_preset(given.get("data")) if sources.preset == "auto" else sources.preset
        # The parser has refused unknown names.
        values, channels = dict(PRESETS.get(preset, {})), 1
        if isinstance(given.get("data"), str):
            values = {name: value for name, value in values.items() if name not in _FOR_DIGITS}
            from tgan_fast.data import read_videos

            channels = read_videos(Path(given["data"]), given.get("axes")).frames.shape[3]
            values["channels"] = max(values.get("channels", 3), channels)
        if isinstance(given.get("init_from"), str):
            from tgan_fast.training.fine_tuning import network_settings

            values |= network_settings(Path(given["init_from"]), channels)
    return _build_config(values | given, sources)


def _build_config(values, sources) -> TrainingConfig:
    try:
        return TrainingConfig(**values)
    except InputError as error:
        if sources.config is None:
            raise
        raise InputError(f"{sources.config}: {error}") from None


def _numbered_folders() -> list[Path]:
    return [path for path in _RUNS.glob("*") if re.match(r"\d{5}-", path.name) and path.is_dir()]


def _new_folder(preset: str) -> Path:
    """Make the folder with the next number in runs/, which no other command then takes."""
    # Only one of torchrun's processes makes it and writes to it.
    if os.environ.get("RANK", "0") != "0":
        return _next_folder(preset)
    try:
        while True:
            _RUNS.mkdir(exist_ok=True)
            # Another command may meanwhile remove the unused folder that it has made.
            with suppress(FileNotFoundError, FileExistsError):
                return _make_next_folder(preset)
    except OSError as error:
        raise InputError(f"cannot make a folder for the run in {_RUNS}: {error.strerror}; choose --out") from None


def _make_next_folder(preset):
    runs = os.open(_RUNS, os.O_RDONLY)
    try:
        while not lock(runs):
            time.sleep(0.01)
        out = _next_folder(preset)
        out.mkdir()
        return out
    finally:
        os.close(runs)


def _next_folder(preset):
    number = max((int(path.name[:5]) + 1 for path in _numbered_folders()), default=0)
    return _RUNS / f"{number:05d}-{preset}"
