"""Let the discriminators of two checkpoints judge real clips and each other's videos."""

from tqdm import tqdm

from tgan_fast.cli.gam import GamCommand
from tgan_fast.errors import InputError
from tgan_fast.metrics.generative_adversarial_metric import (
    Battle,
    battle,
    best_threshold,
    errors_on_generated,
    errors_on_real,
    scores_of,
)
from tgan_fast.metrics.real_clips import draw_clips
from tgan_fast.models.sampling import Sampler, draw_inputs, refuse_non_finite
from tgan_fast.pixels import to_videos
from tgan_fast.training import TrainingConfig
from tgan_fast.training.checkpoint import find, open_checkpoint
from tgan_fast.training.data import open_data, with_data
from tgan_fast.training.devices import resolve_device

_BATCH = 64


def run(command: GamCommand) -> None:
    device = resolve_device(command.device)
    checkpoints = [open_checkpoint(find(path)) for path in command.checkpoints]
    generators = [checkpoint.generator(command.weights).to(device) for checkpoint in checkpoints]
    discriminators = [checkpoint.discriminator().to(device) for checkpoint in checkpoints]
    if generators[0].channels != generators[1].channels:
        channels = " and ".join(str(generator.channels) for generator in generators)
        raise InputError(f"the two make videos of {channels} channels: compare runs on the same data")
    sizes = [f"{generator.clip_frames} frames of {generator.image_size} pixels" for generator in generators]
    if sizes[0] != sizes[1]:
        raise InputError(f"the two make videos of {' and of '.join(sizes)}: compare runs of the same size")
    if any(generator.classes for generator in generators):
        raise InputError("gam compares runs without classes, and a conditional discriminator needs them")
    for checkpoint, generator in zip(checkpoints, generators, strict=True):
        refuse_non_finite(generator, checkpoint.path)
    real, unseen = _real(command, checkpoints[0].config)

    with tqdm(desc="videos scored", total=8 * command.samples, unit="video", dynamic_ncols=True) as bar:
        test, samples = _errors(command, device, generators, discriminators, real, unseen, bar)
    _print([checkpoint.path for checkpoint in checkpoints], test, samples, battle(test, samples))


def _errors(command, device, generators, discriminators, real, unseen, bar):
    """Return both discriminators' errors on unseen real clips and on the other's videos."""

    def clips(dataset, purpose):
        for clips, _ in draw_clips(dataset, command.samples, seed=(command.seed, purpose), batch_size=_BATCH):
            yield to_videos(clips.to(device)).expand(-1, generators[0].channels, -1, -1, -1)

    def scores(discriminator, batches):
        return scores_of(discriminator, _counted(batches, bar))

    thresholds = [
        best_threshold(scores(d, clips(real, 0)), scores(d, _generated(g, command.seed, command.samples)))
        for g, d in zip(generators, discriminators, strict=True)
    ]
    judges = list(zip(discriminators, thresholds, strict=True))
    test = tuple(errors_on_real(scores(d, clips(unseen, 1)), threshold) for d, threshold in judges)
    # Not the videos that the thresholds were set with.
    others = [_generated(g, command.seed + 1, command.samples) for g in reversed(generators)]
    samples = tuple(
        errors_on_generated(scores(d, videos), threshold) for (d, threshold), videos in zip(judges, others, strict=True)
    )
    return test, samples


def _real(command, config: TrainingConfig | None):
    if config is None and command.data is None:
        raise InputError(f"{command.checkpoints[0]} does not tell what it was trained on: give --data")
    config = with_data(config or TrainingConfig(), command.data)
    # Another seed draws other digits on other paths; of videos it changes nothing.
    unseen = with_data(config.model_copy(update={"seed": config.seed + 1}), command.test_data)
    return open_data(config), open_data(unseen)


def _generated(generator, seed, count):
    latents = draw_inputs(generator, count, seed)
    return Sampler(generator, batch_size=_BATCH, precision="fp32", output="videos").on_device(latents)


def _counted(batches, bar):
    for videos in batches:
        yield videos
        bar.update(len(videos))


def _print(paths, test, samples, outcome: Battle) -> None:
    for number, path in enumerate(paths):
        print(
            f"{path}: wrong about {100 * test[number].share:.1f} % of unseen real clips, "
            f"{100 * samples[number].share:.1f} % of the other's videos"
        )
    for name, ratio in (("r_test", outcome.r_test), ("r_samples", outcome.r_samples)):
        print(f"{name:10}{ratio.value:8.3f}   95 %: {ratio.low:.3f} to {ratio.high:.3f}")
    verdict = "neither wins" if outcome.winner is None else f"{paths[outcome.winner - 1]} wins"
    print(verdict)
