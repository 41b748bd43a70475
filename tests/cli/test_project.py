"""`python -m tgan_fast project` as its users run it."""

import numpy as np
import pytest
from PIL import Image
from support.encoding import encode, moving_picture, numbered_frames

from tgan_fast.cli import project as command
from tgan_fast.errors import InputError
from tgan_fast.training import TrainingConfig, train

QUICK = ("--restarts", "3", "--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of a run in color without classes, and of a gray one with classes."""
    folders = [tmp_path_factory.mktemp("colored"), tmp_path_factory.mktemp("conditional")]
    values = {"width": 0.0625, "latent_dim": 6, "digits": 1, "batch_size": 2, "image_size": 16, "frames": 8}
    for folder, options in zip(folders, ({"channels": 3}, {"channels": 1, "conditional": True}), strict=True):
        train(TrainingConfig(**values, **options, steps=1, device="cpu"), folder)
    return folders


@pytest.fixture
def clips(tmp_path):
    """Write three clips of ten frames, and return the file and the clips."""
    clips = np.random.default_rng(0).integers(0, 256, (3, 10, 16, 16, 1), np.uint8)
    np.save(tmp_path / "clips.npy", clips)
    return tmp_path / "clips.npy", clips


def test_the_clip_chosen_is_shown_first_and_its_latents_are_written(runs, clips, tmp_path, capsys):
    path, given = clips
    options = "--clip", "1", "--start", "2", "--class", "4", "--latents", str(tmp_path / "found.npz")
    command.main([str(path), "--checkpoint", str(runs[1]), "--out", str(tmp_path / "x.npy"), *options, *QUICK])
    shown = np.load(tmp_path / "x.npy")
    assert shown.shape == (3, 8, 16, 16, 1)
    assert np.array_equal(shown[0], given[1, 2:])
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        shapes = {name: found[name].shape for name in found.files}
        assert shapes == {"latent": (6,), "frame_latents": (8, 6), "content": (6,), "label": ()}
        assert found["label"] == 4
    assert "best of 3 restarts, class 4" in capsys.readouterr().out


def test_a_video_file_and_a_folder_of_images(runs, tmp_path):
    encode(tmp_path / "v.mp4", moving_picture(12, 40, 60))
    (tmp_path / "images").mkdir()
    for number, frame in enumerate(numbered_frames(9, 16, 16)):
        Image.fromarray(frame).save(tmp_path / "images" / f"{number}.png")
    for source, run in (("v.mp4", runs[0]), ("v.mp4", runs[1]), ("images", runs[1])):
        command.main([str(tmp_path / source), "--checkpoint", str(run), "--out", str(tmp_path / "x.gif"), *QUICK])
        assert Image.open(tmp_path / "x.gif").size == (3 * 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.avi"], r"cannot write x\.avi: its name must end in"),
        (["--out", "nowhere/x.gif"], "there is no folder nowhere"),
        (["--latents", "nowhere/x.npz"], "there is no folder nowhere"),
        (["--latents", "x.pt"], r"cannot write x\.pt: its name must end in \.npz"),
        (["--clip", "-1"], "--clip is -1, but must be at least 0"),
        (["--clip", "3"], r"--clip is 3, but .*clips\.npy has 3 videos, from 0"),
        (["--start", "-1"], "--start is -1, but must be at least 0"),
        (["--start", "3"], r"has fewer than 11 frames, but the generator makes 8 frames and --start is 3"),
        (["--class", "10"], "--class is 10, but the classes are 0 to 9"),
        (["--restarts", "0"], "--restarts is 0, but must be at least 1"),
        (["--restarts", "10001"], "--restarts is 10001, but must be at most 10,000"),
        (["--steps", "0"], "--steps is 0, but must be at least 1"),
        (["--learning-rate", "0"], "--learning-rate is 0.0, but must be more than 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan, but must be more than 0"),
        (["--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--fps", "51"], r"fps is 51, but must be 1 to 50 for \.gif"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
        (["--checkpoint", "nothing.pt"], r"there is no checkpoint nothing\.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(runs, clips, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        command.main([str(clips[0]), "--checkpoint", str(runs[1]), "--out", "x.gif", *QUICK, *arguments])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["clips.npy"]


def test_videos_that_cannot_be_used_are_refused(runs, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for source, message in (("nothing.mp4", "there is no .*nothing"), ("broken.mp4", r"broken\.mp4 cannot be read: ")):
        with pytest.raises(InputError, match=message):
            command.main(
                [str(tmp_path / source), "--checkpoint", str(runs[1]), "--out", str(tmp_path / "x.gif"), *QUICK]
            )


def test_a_class_without_classes_is_refused(runs, clips, tmp_path):
    with pytest.raises(InputError, match="was trained without classes: leave out --class"):
        command.main(
            [str(clips[0]), "--checkpoint", str(runs[0]), "--out", str(tmp_path / "x.gif"), *QUICK, "--class", "1"]
        )
