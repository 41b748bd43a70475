"""Checkpoints: kept, read safely, refused with a reason, the notebook's included."""

import copy
import json
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.notebook import notebook_checkpoint

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.models.sampling import draw_latents, sample_videos
from tgan_fast.training import TrainingConfig, TrainingStep, train
from tgan_fast.training.build import GENERATOR_SETTINGS, build_discriminator, build_generator
from tgan_fast.training.checkpoint import (
    CHECKPOINT_FORMAT,
    PRETRAINED,
    CheckpointFolder,
    find,
    load_generator,
    open_checkpoint,
    read,
    read_run,
)

CONFIG = TrainingConfig(width=0.0625, latent_dim=6, channels=1, frames=8, image_size=16, batch_size=2, ema_decay=0.5)
# The notebook's networks are for clips of the default size.
NOTEBOOK = TrainingConfig(width=0.03125, latent_dim=6, channels=1, batch_size=2, device="cpu", workers=1)


def checkpoint(config=CONFIG):
    step = TrainingStep(build_generator(config), build_discriminator(config), ema_decay=config.ema_decay)
    step(torch.rand(2, config.channels, config.frames, config.image_size, config.image_size))
    return {"config": config.model_dump(), "device": "cpu", "step": step.state_dict()}, step


def test_the_newest_and_the_best_are_kept(tmp_path):
    content, _ = checkpoint()
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.latest() is None
    scored_by = {"protocol": "plain", "classifier": "0123"}
    assert folder.best_scores(scored_by) == {}
    for iteration in (5, 10, 100_000):
        folder.save(content, iteration)
    folder.save_best(content, {"inception_score": 3.0}, scored_by)
    assert [path.name for path in folder.paths()] == ["iteration-00000010.pt", "iteration-00100000.pt"]
    assert folder.latest() == tmp_path / "iteration-00100000.pt"
    folder.save(content, 100_001)
    for reader in (folder, CheckpointFolder(tmp_path, keep=1)):
        assert reader.best_scores(scored_by) == {"inception_score": 3.0}
        # Scores of another classifier are not comparable.
        assert reader.best_scores(scored_by | {"classifier": "4567"}) == {}


def test_a_full_disk_keeps_every_older_checkpoint(tmp_path):
    content, _ = checkpoint()
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(content, 1)
    (tmp_path / ".iteration-00000002.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        folder.save(content, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00000001.pt"]
    read_run(folder.latest())


@pytest.mark.parametrize("weights", ["auto", "live", "ema"])
def test_a_runs_generator_gives_the_same_videos(tmp_path, weights):
    content, step = checkpoint()
    path = CheckpointFolder(tmp_path, keep=1).save(content, 1)
    latents = draw_latents(3, CONFIG.latent_dim, 0)
    network = step.generator if weights == "live" else step.ema
    generator = load_generator(path, weights=weights)
    assert not generator.training
    assert torch.equal(sample_videos(generator, latents), sample_videos(network, latents))


def exported(path, content, metadata):
    state = {name: tensor.contiguous() for name, tensor in content["step"]["ema"].items()}
    safetensors.torch.save_file(state, path, metadata)
    return path


def test_an_exported_generator_gives_the_same_videos_and_tells_its_run(tmp_path):
    content, step = checkpoint()
    metadata = {"settings": json.dumps(content["config"]), "iteration": "1", "weights": "ema"}
    opened = open_checkpoint(exported(tmp_path / "generator.safetensors", content, metadata))
    assert (opened.config, opened.iteration, opened.tells_data, opened.kind("auto")) == (CONFIG, 1, True, "ema")
    with pytest.raises(InputError, match="has only averaged weights: leave out --weights live"):
        opened.generator("live")
    latents = draw_latents(3, CONFIG.latent_dim, 0)
    assert torch.equal(sample_videos(opened.generator(), latents), sample_videos(step.ema, latents))
    with pytest.raises(InputError, match="has a generator, but no discriminator"):
        opened.discriminator()
    with pytest.raises(InputError, match="holds an exported generator only: sample from it, or resume a checkpoint"):
        read_run(opened.path)


def test_an_exported_generator_of_an_earlier_version_does_not_tell_its_data(tmp_path):
    content, _ = checkpoint()
    metadata = {"settings": json.dumps({name: content["config"][name] for name in GENERATOR_SETTINGS})}
    opened = open_checkpoint(exported(tmp_path / "generator.safetensors", content, metadata))
    opened.generator()
    assert (opened.iteration, opened.tells_data) == (None, False)


@pytest.mark.parametrize("damage", ["cut", "header", "settings", "iteration"])
def test_a_damaged_exported_generator_is_one_sentence(tmp_path, damage):
    content, _ = checkpoint()
    metadata = {"settings": json.dumps(content["config"]), "iteration": "1"}
    if damage in metadata:
        metadata[damage] = "[]"
    path = exported(tmp_path / "generator.safetensors", content, metadata)
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-10], "header": raw[:9] + b"{" + raw[10:]}.get(damage, raw))
    with pytest.raises(InputError, match="is not a generator exported as safetensors, or is damaged"):
        open_checkpoint(path)


def test_settings_of_another_version_are_named_with_their_file(tmp_path):
    content, _ = checkpoint()
    metadata = {"settings": json.dumps(content["config"] | {"wings": 2})}
    with pytest.raises(InputError, match=r"generator\.safetensors: there is no setting wings"):
        open_checkpoint(exported(tmp_path / "generator.safetensors", content, metadata))


def test_a_generator_of_the_package_is_found_by_its_name_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find(Path("digits")) == PRETRAINED["digits"]
    assert find(Path("other")) == Path("other")
    with pytest.raises(InputError, match=r"there is no checkpoint digit; did you mean digits\?"):
        load_generator(find(Path("digit")))
    Path("digits").write_bytes(b"")
    assert find(Path("digits")) == Path("digits")


def test_without_averaged_weights_auto_takes_the_live_ones(tmp_path):
    content, step = checkpoint(CONFIG.model_copy(update={"ema_decay": None}))
    path = CheckpointFolder(tmp_path, keep=1).save(content, 1)
    assert torch.equal(load_generator(path).slow[0].weight, step.generator.slow[0].weight)
    with pytest.raises(InputError, match="no averaged weights"):
        load_generator(path, weights="ema")


@pytest.mark.slow
def test_the_notebooks_checkpoint_goes_in_and_out(tmp_path):
    path = tmp_path / "state_normal81000.ckpt"
    generator, discriminator = notebook_checkpoint(path)
    # The published file has 123,969,792 bytes; what differs is the container's, not the tensors'.
    assert path.stat().st_size == pytest.approx(123_969_792, rel=1e-3)

    states = torch.load(path, weights_only=True)["model_state_dict"]
    fast = VideoGenerator()
    fast.load_state_dict(states[0])
    VideoDiscriminator().load_state_dict(states[1])
    latents = draw_latents(2, 100, 0)
    expected = generator.eval()(latents).detach()
    torch.testing.assert_close(fast.eval()(latents).detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load_generator(path)(latents).detach(), expected, rtol=1e-4, atol=1e-5)

    back = reference.Generator()
    back.load_state_dict(fast.state_dict())
    assert torch.equal(back.eval()(latents), expected)
    reference.Discriminator().load_state_dict(discriminator.state_dict())


def test_a_run_resumes_from_the_notebooks_checkpoint(tmp_path):
    content, _ = small_notebook_checkpoint()
    path = tmp_path / "notebook.ckpt"
    torch.save(content, path)

    step = train(NOTEBOOK.model_copy(update={"steps": 3}), tmp_path / "run", resume=path)
    assert step.iteration == 3
    # A moving average that began at this run's start would be far below.
    for name, saved in zip(("generator", "discriminator"), content.pop("optimizer_state_dict"), strict=True):
        before = saved["state"]
        after = step.state_dict()[f"{name}_optimizer"]["state"]
        for key, entry in after.items():
            assert (entry["square_avg"] >= 0.99**2 * before[key]["square_avg"] * (1 - 1e-5)).all()
    torch.save(content, path)
    with pytest.raises(InputError, match="has no iteration or optimizers: sample from it, or resume"):
        read_run(path)


def small_notebook_checkpoint():
    """Return what the notebook saves, of networks of the size of `NOTEBOOK`, and the generator."""
    torch.manual_seed(1)
    networks = reference.Generator(NOTEBOOK.width, NOTEBOOK.latent_dim, 1), reference.Discriminator(NOTEBOOK.width, 1)
    optimizers = reference.make_optimizers(*networks)
    videos, z = torch.rand(2, 1, 16, 64, 64), torch.rand(2, NOTEBOOK.latent_dim)
    reference.training_iteration(*networks, *optimizers, videos, z, z, iteration=0)
    content = {
        "epoch": 1,
        "model_state_dict": [network.state_dict() for network in networks],
        "optimizer_state_dict": [optimizer.state_dict() for optimizer in optimizers],
    }
    return content, networks[0]


def as_tuples(content):
    return content | {name: tuple(content[name]) for name in ("model_state_dict", "optimizer_state_dict")}


def with_prefix(prefix):
    def changed(content):
        states = [{prefix + name: value for name, value in state.items()} for state in content["model_state_dict"]]
        return content | {"model_state_dict": states}

    return changed


def with_numpy_values(content):
    numbers = {"epoch": np.int64(1), "loss": np.float64(0.5), "best": np.bool_(True), "step": np.array(3)}
    return content | numbers | {"losses": [np.float32(1), np.arange(3.0)], "names": np.array(["a", None], object)}


@pytest.fixture
def _narrow_notebook(monkeypatch):
    """Assume the widths of `NOTEBOOK` for checkpoints of the notebook, which do not store theirs."""
    monkeypatch.setattr("tgan_fast.training.checkpoint.TrainingConfig", lambda: NOTEBOOK)


@pytest.mark.usefixtures("_narrow_notebook")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "form", [as_tuples, with_prefix("module."), with_prefix("_orig_mod."), with_numpy_values, copy.copy]
)
def test_variants_of_the_notebooks_checkpoint_that_circulate(tmp_path, form, legacy):
    content, generator = small_notebook_checkpoint()
    torch.save(form(content), tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    opened = open_checkpoint(tmp_path / "x.ckpt")
    assert opened.iteration == 1
    latents = draw_latents(2, NOTEBOOK.latent_dim, 0)
    torch.testing.assert_close(opened.generator()(latents), generator.eval()(latents), rtol=1e-4, atol=1e-5)
    torch.save(content, tmp_path / "plain.ckpt")
    assert equal(read_run(tmp_path / "x.ckpt"), read_run(tmp_path / "plain.ckpt"))


@pytest.mark.usefixtures("_narrow_notebook")
@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {"module." + name: value for name, value in state.items()},
        lambda state: {"_orig_mod.module." + name: value for name, value in state.items()},
        lambda state: {"epoch": 3, "model_state_dict": state},
        lambda state: {"state_dict": state},
        lambda state: {"generator": state},
        lambda state: [state],
        lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=["alone", "DataParallel", "compiled DDP", "model_state_dict", "state_dict", "by name", "list", "before 0.4.1"],
)
def test_a_generators_state_dict_alone(tmp_path, form):
    generator = build_generator(NOTEBOOK)
    torch.save(form(generator.state_dict()), tmp_path / "g.pt")
    loaded = load_generator(tmp_path / "g.pt")
    latents = draw_latents(1, NOTEBOOK.latent_dim, 0)
    assert torch.equal(loaded(latents), generator.eval()(latents))
    with pytest.raises(InputError, match=r"g\.pt has a generator, but no discriminator"):
        open_checkpoint(tmp_path / "g.pt").discriminator()
    with pytest.raises(InputError, match=r"g\.pt has no iteration or optimizers"):
        read_run(tmp_path / "g.pt")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": [Bomb(), {}]}, "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError,
        match=r"x\.pt is refused, because it holds the Python object \S*open, and such objects can run code",
    ):
        read(tmp_path / "x.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"plain\.pt is refused|plain\.pt is not a checkpoint"):
        read(tmp_path / "plain.pt")
    assert not (tmp_path / "exploded").exists()


def damaged_files(folder):
    content, _ = checkpoint()
    whole = CheckpointFolder(folder, keep=1).save(content, 1).read_bytes()
    yield "empty", b""
    yield "text", b"not a checkpoint\n" * 100
    yield "cut short", whole[: len(whole) // 2]
    yield "cut at the end", whole[:-100]


def damaged(whole, chances):
    """Return bytes with one thing wrong: a flipped bit, a missing, doubled, swapped or zeroed part."""
    start, length = chances.randrange(len(whole)), chances.choice([1, 16, 512, 40_000])
    part = whole[start : start + length]
    match chances.choice(["bit", "bit", "bit", "cut", "missing", "doubled", "zeros", "swapped"]):
        case "bit":
            return whole[:start] + bytes([whole[start] ^ 1 << chances.randrange(8)]) + whole[start + 1 :]
        case "cut":
            return whole[:start]
        case "missing":
            return whole[:start] + whole[start + length :]
        case "doubled":
            return whole[:start] + part + whole[start:]
        case "zeros":
            return whole[:start] + bytes(len(part)) + whole[start + len(part) :]
        case "swapped":
            other = chances.randrange(len(whole))
            return whole[:start] + whole[other : other + len(part)] + whole[start + len(part) :]


def result_or_error(function, *arguments, **options):
    """Return what a function returns, and the message of the package's own error, if it raises one."""
    try:
        return function(*arguments, **options), None
    except (InputError, NonFiniteError) as error:
        return None, str(error)


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def assert_damage_is_noticed(folder, count, chances):
    content, _ = checkpoint()
    path = CheckpointFolder(folder, keep=1).save(content, 1)
    whole, right = path.read_bytes(), read(path)
    for _ in range(count):
        path.write_bytes(damaged(whole, chances))
        got, error = result_or_error(read, path)
        assert equal(got, right) if error is None else re.fullmatch(".*(damaged|neither|is refused).*", error)


def test_one_wrong_bit_or_missing_piece_anywhere_is_noticed(tmp_path):
    assert_damage_is_noticed(tmp_path, 150, random.Random(0))


def places(value, path=()):
    """Yield the paths of all values in nested dicts and lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_a_wrong_value(content, chances):
    """Return a copy in which one value is missing, or another one of the same checkpoint."""
    content = copy.deepcopy(content)
    *parents, key = chances.choice([path for path in places(content) if path])
    other = content
    for step in chances.choice(list(places(content))):
        other = other[step]
    holder = content
    for step in parents:
        holder = holder[step]
    if chances.random() < 0.3:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(other)
    return content


@pytest.mark.parametrize("epoch", [-1, 10**30, 0.5, "1", None])
def test_a_count_of_iterations_that_cannot_be_is_none(tmp_path, epoch):
    content, _ = small_notebook_checkpoint()
    torch.save(content | {"epoch": epoch}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="has no iteration or optimizers"):
        read_run(tmp_path / "x.ckpt")


def resume(path, folder):
    config = TrainingConfig(**read_run(path)["config"])
    # A value that came from another setting may ask for a large model.
    if config.width <= CONFIG.width and config.batch_size <= 8:
        train(config.model_copy(update={"steps": 1}), folder, resume=path)


def assert_wrong_values_are_named(folder, count, chances):
    content, _ = checkpoint()
    content["config"] |= {"device": "cpu", "steps": 1, "workers": 1, "precision": "fp32"}
    for number in range(count):
        torch.save({"format": CHECKPOINT_FORMAT, **with_a_wrong_value(content, chances)}, folder / "x.pt")
        _, error = result_or_error(resume, folder / "x.pt", folder / str(number))
        assert "\n" not in (error or ""), error


@pytest.mark.parametrize(
    ("count", "seed"), [(20, 0), pytest.param(40, 1, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_a_wrong_value_anywhere_is_a_sentence_or_harmless(tmp_path, count, seed):
    assert_wrong_values_are_named(tmp_path, count, random.Random(seed))


def test_the_newest_checkpoint_that_is_not_damaged_is_used_and_named(tmp_path, capsys):
    content, _ = checkpoint()
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=9)
    folder.folder.mkdir()
    for iteration in (5, 10, 15):
        folder.save(content, iteration)
    older, newer, newest = folder.paths()
    newest.write_bytes(b"")
    raw = newer.read_bytes()
    newer.write_bytes(raw[:3000] + bytes([raw[3000] ^ 1]) + raw[3001:])
    assert find(tmp_path) == older
    assert capsys.readouterr().err.splitlines() == [
        f"{path} is damaged: using the older {older.name} instead" for path in (newest, newer)
    ]
    assert sorted(folder.set_damaged_aside()) == [path.with_name(f"{path.name}.damaged") for path in (newer, newest)]
    assert folder.paths() == [older]
    older.write_bytes(raw[:3000])
    with pytest.raises(InputError, match=r"all numbered checkpoints in .* are damaged: restore one from a copy"):
        find(tmp_path)


def test_damaged_files_are_named(tmp_path):
    for name, content in damaged_files(tmp_path):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.pt.*not a checkpoint, or is damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*nothing\.pt"):
        read(tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
    for content in ({"weights": torch.zeros(3)}, torch.zeros(3), {"model_state_dict": {"x": torch.zeros(3)}}):
        torch.save(content, tmp_path / "foreign.pt")
        with pytest.raises(InputError, match="neither a checkpoint of tgan_fast nor one of the PyTorch notebook"):
            read(tmp_path / "foreign.pt")


def test_another_architecture_is_named_by_its_first_key_and_both_shapes(tmp_path):
    state = VideoGenerator(width=0.5).state_dict()
    torch.save({"model_state_dict": [state, {}]}, tmp_path / "narrow.ckpt")
    with pytest.raises(InputError, match=r"temp\.model\.0\.weight is \[100, 256, 1\] in the file, but \[100, 512, 1\]"):
        load_generator(tmp_path / "narrow.ckpt")
    state = VideoGenerator().state_dict()
    del state["fast.0.weight"]
    torch.save({"model_state_dict": [state, {}]}, tmp_path / "less.ckpt")
    with pytest.raises(InputError, match=r"it has no fast\.0\.weight of shape \[4096, 100\]"):
        load_generator(tmp_path / "less.ckpt")
    torch.save({"model_state_dict": [VideoGenerator().state_dict() | {"x": torch.ones(1)}, {}]}, tmp_path / "more.ckpt")
    with pytest.raises(InputError, match="it has x, which the network does not have"):
        load_generator(tmp_path / "more.ckpt")


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="there is no checkpoint in"):
        find(tmp_path)
    content, _ = checkpoint()
    path = CheckpointFolder(tmp_path / "checkpoints", keep=3).save(content, 7)
    assert find(tmp_path) == path
    assert find(path) == path
