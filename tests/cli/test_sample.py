"""`python -m tgan_fast sample` as its users run it."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.run_folders import write_filled

from tgan_fast import reference
from tgan_fast.cli import sample as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.models.sampling import draw_latents
from tgan_fast.training import TrainingConfig, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    # With such a large learning rate, videos differ after three steps.
    values = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2}
    config = TrainingConfig(**values, steps=3, learning_rate=0.02, ema_decay=0.5, device="cpu")
    return folder, train(config, folder)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """Checkpoint with ten classes, normal latents and another size."""
    folder = tmp_path_factory.mktemp("conditional")
    values = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2, "image_size": 16}
    parts = {"temporal_generator": "gru", "latent": "normal", "conditional": True, "frames": 9}
    config = TrainingConfig(**values, **parts, steps=3, learning_rate=0.02, device="cpu")
    return folder, train(config, folder)


def sampled(folder, out, *arguments):
    command.main(["--checkpoint", str(folder), "--out", str(out), "--device", "cpu", *arguments])
    return np.load(out)


def clips_of(generator, count, seed):
    """Sample by the definition: evaluation mode, levels (y + 1)/2·255."""
    videos = generator.eval()(draw_latents(count, 6, seed)).detach()
    return ((videos.permute(0, 2, 3, 4, 1) + 1) / 2 * 255).round().to(torch.uint8).numpy()


def test_the_array_holds_the_generators_videos(trained, tmp_path):
    folder, step = trained
    for options, generator in (([], step.ema), (["--weights", "live"], step.generator)):
        got = sampled(folder, tmp_path / "x.npy", "--grid", "2", "--seed", "5", *options)
        assert got.shape == (4, 16, 64, 64, 1)
        assert np.abs(got.astype(int) - clips_of(generator, 4, 5)).max() <= 1
        assert got.std() > 3
        assert not np.array_equal(got, sampled(folder, tmp_path / "y.npy", "--grid", "2", "--seed", "6", *options))
        assert np.array_equal(got, sampled(folder, tmp_path / "z.npy", "--grid", "2", "--seed", "5", *options))


def test_batch_statistics_on_request(trained, tmp_path):
    folder, step = trained
    got = sampled(folder, tmp_path / "x.npy", "--grid", "2", "--weights", "live", "--batch-norm", "batch")
    videos = step.generator.train()(draw_latents(4, 6, 0)).detach()
    expected = ((videos.permute(0, 2, 3, 4, 1) + 1) / 2 * 255).round().to(torch.uint8).numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("option", "calls"), [([], 1), (["--no-keep-memory"], 0)])
def test_memory_is_kept_unless_it_must_not(trained, tmp_path, keep_memory, option, calls):
    sampled(trained[0], tmp_path / "x.npy", "--grid", "1", *option)
    assert keep_memory.call_count == calls


def test_the_precision_asked_for(trained, tmp_path):
    folder, step = trained
    exact, rounded = (
        sampled(folder, tmp_path / f"{precision}.npy", "--grid", "2", "--precision", precision).astype(int)
        for precision in ("fp32", "bf16")
    )
    assert np.abs(exact - clips_of(step.ema, 4, 0)).max() <= 1
    # Less than 1 % of the levels.
    assert 0 < np.abs(rounded - exact).mean() < 2.55


@pytest.mark.parametrize("name", ["x.gif", "x.mp4", "x.webp", "x.apng", "x.png", "X.GIF"])
def test_files_to_look_at(trained, tmp_path, capsys, name):
    checkpoint = trained[0] / "checkpoints" / "iteration-00000003.pt"
    command.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / name), "--grid", "3", "--device", "cpu"])
    videos = "3 videos, each a row of its frames" if name == "x.png" else "9 videos in a grid of 3 × 3"
    assert capsys.readouterr().out == f"{videos}: {tmp_path / name}\n"
    if name == "x.png":
        assert Image.open(tmp_path / name).size == (16 * 64, 3 * 64)
    elif name.lower() == "x.gif":
        assert Image.open(tmp_path / name).size == (3 * 64, 3 * 64)
    assert (tmp_path / name).stat().st_size > 0


def test_the_notebooks_checkpoint_is_recognized_by_content(tmp_path):
    generator = reference.Generator()
    content = {
        "epoch": 1,
        "model_state_dict": [generator.state_dict(), reference.Discriminator().state_dict()],
        "optimizer_state_dict": [{}, {}],
    }
    torch.save(content, tmp_path / "state_normal81000.ckpt")
    got = sampled(tmp_path / "state_normal81000.ckpt", tmp_path / "x.npy", "--grid", "1")
    videos = generator.eval()(draw_latents(1, 100, 0)).detach()
    expected = ((videos.permute(0, 2, 3, 4, 1) + 1) / 2 * 255).round().to(torch.uint8).numpy()
    assert got.shape == (1, 16, 64, 64, 3)
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.avi"], r"cannot write x\.avi: its name must end in \.gif, \.mp4, \.webp, \.apng, \.png, \.npy"),
        (["--out", "nowhere/x.gif"], r"cannot write nowhere/x\.gif: there is no folder nowhere"),
        (["--out", "/proc/x.gif", "--grid", "1"], r"cannot write /proc/x\.gif"),
        (["--out", "x.gif", "--grid", "0"], "--grid is 0, but must be at least 1"),
        (["--out", "x.gif", "--grid", str(10**9)], "--grid is 1000000000, but must be at most 1,000"),
        (["--out", "x.mp4", "--grid", "1000"], "1,000,000 videos make a picture of 64,000×64,000 pixels, but"),
        (["--out", "x.gif", "--fps", "0"], r"fps is 0, but must be 1 to 50 for \.gif"),
        (["--out", "x.gif", "--fps", "51"], r"fps is 51, but must be 1 to 50 for \.gif"),
        (["--out", "x.gif", "--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--out", "x.gif", "--seed", str(10**20)], r"--seed is 10+, but must be at most 9,223,372,036,854,775,807"),
        (["--out", "x.gif", "--walk", str(2**63)], "--walk is 9223372036854775808, but must be at most"),
        (["--out", "x.gif", "--interpolate", str(10**12)], "--interpolate is 10+, but must be at most 100"),
        (["--out", "x.gif", "--grid", "1", "--batch-norm", "batch"], "needs at least 2 videos"),
        (["--out", "x.gif", "--device", "cpu", "--precision", "tf32"], "the CPU does not compute in TF32: choose"),
        (
            ["--out", "x.gif", "--batch-norm", "batch", "--precision", "bf16"],
            "only in fp32: leave out --precision bf16",
        ),
        (["--out", "x.gif", "--device", "cuda:99"], "cuda:99 cannot be used"),
        (["--out", "x.gif", "--sed", "1"], "there is no option --sed; did you mean --seed"),
        (["--out", "x.gif", "--checkpoint", "nothing.pt"], r"there is no checkpoint nothing\.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [] if "--checkpoint" in arguments else ["--checkpoint", str(trained[0])]
    with pytest.raises(InputError, match=message) as caught:
        command.main([*given, *arguments])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def levels_of(videos):
    return ((videos.detach().permute(0, 2, 3, 4, 1) + 1) / 2 * 255).round().numpy()


def test_a_class_alone_and_a_row_for_every_class(conditional, tmp_path):
    folder, step = conditional
    generator = step.generator.eval()
    z = draw_latents(9, 6, 2, distribution=generator.latent)
    got = sampled(folder, tmp_path / "x.npy", "--grid", "3", "--seed", "2", "--class", "3")
    assert np.abs(got - levels_of(generator(z, torch.full((9,), 3)))).max() <= 1
    got = sampled(folder, tmp_path / "y.npy", "--grid", "2", "--seed", "2")
    assert got.shape == (20, 9, 16, 16, 1)
    # The same two latents in every row.
    z = draw_latents(2, 6, 2, distribution=generator.latent).repeat(10, 1)
    expected = levels_of(generator(z, torch.arange(20) // 2))
    assert np.abs(got - expected).max() <= 1
    command.main(["--checkpoint", str(folder), "--out", str(tmp_path / "x.gif"), "--grid", "2", "--device", "cpu"])
    assert Image.open(tmp_path / "x.gif").size == (2 * 16, 10 * 16)
    command.main(["--checkpoint", str(folder), "--out", str(tmp_path / "x.png"), "--device", "cpu"])
    assert Image.open(tmp_path / "x.png").size == (9 * 16, 10 * 16)


def test_more_frames_of_the_same_motion(trained, tmp_path):
    folder, step = trained
    options = "--grid", "2", "--seed", "5"
    plain = sampled(folder, tmp_path / "x.npy", *options)
    got = sampled(folder, tmp_path / "y.npy", *options, "--interpolate", "3")
    assert got.shape == (4, 48, 64, 64, 1)
    inputs = draw_latents(4, 6, 5)
    frames = step.ema.eval().frames(inputs, 3).tanh().unflatten(0, (4, 48)).transpose(1, 2)
    assert np.abs(got - levels_of(frames)).max() <= 1
    for place in (0, -1):
        assert np.abs(got[:, place].astype(int) - plain[:, place]).max() <= 1
    got = sampled(folder, tmp_path / "z.npy", *options, "--interpolate", "2", "--batch-norm", "batch")
    assert got.shape == (4, 32, 64, 64, 1)


def test_videos_longer_than_trained(trained, tmp_path):
    folder, step = trained
    options = "--grid", "2", "--seed", "5"
    got = sampled(folder, tmp_path / "x.npy", *options, "--frames", "40")
    assert got.shape == (4, 40, 64, 64, 1)
    expected = levels_of(step.ema.eval()(draw_latents(4, 6, 5, windows=3), frames=40))
    assert np.abs(got - expected).max() <= 1
    walk = sampled(folder, tmp_path / "y.npy", *options, "--frames", "40", "--walk", "8")
    begin, end = draw_latents(2, 6, 5, windows=3), draw_latents(2, 6, 8, windows=3)
    expected = levels_of(step.ema.eval()(torch.stack([begin, end], 1).flatten(0, 1), frames=40))
    assert np.abs(walk - expected).max() <= 1
    assert sampled(folder, tmp_path / "z.npy", *options, "--frames", "5", "--batch-norm", "batch").shape[1] == 5


def test_truncated_latents(trained, tmp_path):
    folder, step = trained
    got = sampled(folder, tmp_path / "x.npy", "--grid", "2", "--seed", "5", "--truncation", "0.25")
    expected = levels_of(step.ema.eval()(draw_latents(4, 6, 5) / 4))
    assert np.abs(got - expected).max() <= 1


def test_every_row_walks_from_one_latent_to_another(trained, tmp_path):
    folder, step = trained
    got = sampled(folder, tmp_path / "x.npy", "--grid", "3", "--seed", "5", "--walk", "8")
    begin, end = draw_latents(3, 6, 5), draw_latents(3, 6, 8)
    latents = torch.stack([begin, (begin + end) / 2, end], 1).flatten(0, 1)
    assert np.abs(got - levels_of(step.ema.eval()(latents))).max() <= 1
    # A strip is one walk, from top to bottom.
    command.main(
        ["--checkpoint", str(folder), "--out", str(tmp_path / "x.png"), "--grid", "3", "--walk", "8", "--device", "cpu"]
    )
    assert Image.open(tmp_path / "x.png").size == (16 * 64, 3 * 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "3"], "was trained without classes: leave out --class"),
        (["--frames", "0"], "--frames is 0, but must be at least 1"),
        (["--frames", "10001"], "--frames is 10001, but must be at most 10,000"),
        (["--interpolate", "0"], "--interpolate is 0, but must be at least 1"),
        (["--truncation", "0"], r"--truncation is 0\.0, but must be a number more than 0"),
        (["--truncation", "nan"], "--truncation is nan, but must be a number more than 0"),
        (["--truncation", "inf"], "--truncation is inf, but must be a number more than 0"),
        (["--walk", "3", "--grid", "1"], "--walk needs a beginning and an end: choose --grid 2 or more"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(trained, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        command.main(["--checkpoint", str(trained[0]), "--out", str(tmp_path / "x.gif"), *arguments])


def test_a_class_that_there_is_not_is_one_sentence(conditional, tmp_path):
    with pytest.raises(InputError, match="--class is 10, but the classes are 0 to 9"):
        command.main(["--checkpoint", str(conditional[0]), "--out", str(tmp_path / "x.gif"), "--class", "10"])


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """Write a generator whose running statistics are not finite."""
    path = tmp_path_factory.mktemp("broken") / "broken.pt"
    checkpoint = trained[0] / "checkpoints" / "iteration-00000003.pt"
    return write_filled(path, checkpoint, "ema", {"model.1.running_mean": torch.nan})


def test_a_broken_generator_is_refused_unless_what_is_broken_is_not_used(broken, tmp_path):
    out = tmp_path / "x.npy"
    with pytest.raises(
        NonFiniteError, match=r"broken\.pt cannot be used, because model\.1\.running_mean is not finite"
    ):
        sampled(broken, out, "--grid", "2")
    assert not out.exists()
    assert sampled(broken, out, "--grid", "2", "--weights", "live").std() > 3
    assert sampled(broken, out, "--grid", "2", "--batch-norm", "batch").std() > 3


def test_a_generator_that_is_broken_in_every_batch_is_refused(trained, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "iteration-00000003.pt"
    broken = write_filled(tmp_path / "broken.pt", checkpoint, "ema", {"model.0.weight": torch.nan})
    with pytest.raises(NonFiniteError, match=r"broken\.pt cannot be used, because its output is not finite"):
        sampled(broken, tmp_path / "x.npy", "--grid", "2", "--batch-norm", "batch")
    assert not (tmp_path / "x.npy").exists()
