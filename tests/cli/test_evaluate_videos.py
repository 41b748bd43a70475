"""`python -m tgan_fast evaluate --videos` as its users run it: videos against others, or against their own halves."""

import json
import shutil

import numpy as np
import pytest
from support.classifiers import FrameMeans, random_classifier, scripted
from support.encoding import encode
from support.two_processes import torchrun

from tgan_fast.cli import evaluate as command
from tgan_fast.data import MovingDigits
from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier_files import save_classifier

QUICK = ("--classifier", "digits", "--device", "cpu", "--runs", "3")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def encode_exactly(path, clip):
    path.parent.mkdir(exist_ok=True)
    encode(path, clip[..., 0], codec="ffv1", pix_fmt="gray")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return a folder with clips of moving digits: two arrays, and the first one as a folder and a ZIP of videos."""
    folder = tmp_path_factory.mktemp("digits")
    for name, seed in (("a", 1), ("b", 2)):
        dataset = MovingDigits(20, digits=1, seed=seed)
        np.save(folder / f"{name}.npy", np.stack([dataset[number][0] for number in range(20)]))
    for number, clip in enumerate(np.load(folder / "a.npy")):
        encode_exactly(folder / "files" / f"{number:02}.avi", clip)
    shutil.make_archive(str(folder / "packed"), "zip", folder / "files")
    return folder


@pytest.fixture
def evaluate(tmp_path):
    def run(*arguments):
        command.main([*map(str, arguments), *QUICK, "--out", str(tmp_path / "scores.json")])
        return json.loads((tmp_path / "scores.json").read_text())

    return run


def test_without_other_videos_the_halves_are_compared(evaluate, digits, capsys):
    record = evaluate("--videos", digits / "a.npy")
    assert "plain: 3 × 10 videos, seed 0, fp32, classifier " in capsys.readouterr().out
    assert (record["videos"], record["data"], record["samples"]) == (str(digits / "a.npy"), None, 10)
    assert record["frechet_distance"].keys() == {"mean", "std", "real_clips", "layer"}
    assert record["frechet_distance"]["real_clips"] == 10
    assert record["frechet_distance"]["std"] > 0
    assert evaluate("--videos", digits / "a.npy", "--seed", "1")["frechet_distance"] != record["frechet_distance"]
    assert evaluate("--videos", digits / "a.npy", "--samples", "4")["samples"] == 4


def test_videos_are_compared_with_others(evaluate, digits, capsys):
    record = evaluate("--videos", digits / "a.npy", "--data", digits / "b.npy", "--force")
    assert "20 real clips" in capsys.readouterr().out
    assert (record["data"], record["samples"], record["frechet_distance"]["real_clips"]) == (
        str(digits / "b.npy"),
        20,
        20,
    )
    assert record["inception_score"]["real"] > 1
    # A copy of the real clips is at the distance of the real clips to themselves: n − 1 against n, times the variance.
    same = evaluate("--videos", digits / "a.npy", "--data", digits / "a.npy", "--force")
    assert same["frechet_distance"]["mean"] < 1e-3 * record["frechet_distance"]["mean"]


@pytest.mark.parametrize("name", ["files", "packed.zip"])
def test_a_folder_or_an_archive_is_scored_by_the_frames_of_its_videos(evaluate, digits, name):
    expected, got = evaluate("--videos", digits / "a.npy"), evaluate("--videos", digits / name)
    assert got["remarks"] == []
    for score in ("inception_score", "frechet_distance"):
        assert got[score]["mean"] == pytest.approx(expected[score]["mean"], rel=1e-5)


def test_videos_that_cannot_be_read_are_told(evaluate, digits, tmp_path, capsys):
    shutil.copytree(digits / "files", tmp_path / "files")
    (tmp_path / "files" / "99.mp4").write_bytes(b"no video")
    (remark,) = evaluate("--videos", tmp_path / "files")["remarks"]
    assert remark.startswith(f"1 video of {tmp_path / 'files'} left out, such as 99.mp4: it is not a video")
    assert remark in capsys.readouterr().err


def test_videos_that_are_too_short_are_told(evaluate, digits, tmp_path):
    for number, clip in enumerate(np.load(digits / "a.npy")):
        encode_exactly(tmp_path / "videos" / f"{number:02}.avi", clip[: (16, 9)[number % 2]])
    record = evaluate("--videos", tmp_path / "videos")
    assert record["samples"] == 5
    assert record["remarks"] == [f"10 videos of {tmp_path / 'videos'} left out: shorter than 16 frames"]


def test_single_frames_are_compared(evaluate, digits, tmp_path, capsys):
    inception = scripted(FrameMeans(), tmp_path / "inception.pt")
    arguments = ["--metrics", "frame-fid", "--inception", inception]
    record = evaluate("--videos", digits / "a.npy", "--data", digits / "b.npy", "--force", *arguments)
    assert "frame Fréchet distance" in capsys.readouterr().out
    assert record["classifier"] is None
    assert record["frame_frechet_distance"]["layer"] == "pool"


@pytest.mark.slow
def test_the_processes_of_torchrun_get_the_scores_of_one(evaluate, digits, tmp_path):
    arguments = ["--videos", str(digits / "files"), "--data", str(digits / "b.npy"), "--force", *QUICK]
    result = torchrun(["-m", "tgan_fast"], "evaluate", *arguments, "--out", tmp_path / "two.json")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Fréchet distance") == 1
    one = evaluate(*arguments)
    two = json.loads((tmp_path / "two.json").read_text())
    for name in ("inception_score", "frechet_distance"):
        assert two[name]["mean"] == pytest.approx(one[name]["mean"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --checkpoint or --videos"),
        (["--videos", "a.npy", "--checkpoint", "digits"], "give either --checkpoint or --videos"),
        (["--videos", "nothing"], "there is no nothing: check the path"),
        (["--videos", "a.npy", "--data", "nothing"], "there is no nothing: check the path"),
        (["--videos", "a.npy", "--classifier", ""], "is and fid need --classifier: .* or digits for moving digits"),
        (["--videos", "a.npy", "--weights", "ema"], "--weights is for a checkpoint, not for --videos: leave it out"),
        (["--videos", "a.npy", "--real-clips", "4"], "--real-clips is for --data, which is not given: leave it out"),
        (["--videos", "a.npy", "--data", "a.npy"], "only 20 different real clips, too few .* accept them by --force"),
        (["--videos", "a.npy", "--metrics", "frame-fid"], r"frame-fid needs --inception inception-2015-12-05\.pt"),
        (["--videos", "a.npy", "--metrics", "frame-fid", "--inception", "x.pt"], r"there is no x\.pt: inception-2015"),
        (["--videos", "three.npy"], r"three\.npy has too few videos for two halves: give 4 or more, or give --data"),
        (["--videos", "short.npy"], "the videos have at most 4 frames, but scores need 8 or more"),
        (
            ["--videos", "large.npy"],
            r"large\.npy are 80 pixels high: prepare the videos with a --size of 16, 32, 64 or 128",
        ),
        (
            ["--videos", "a.npy", "--data", "small.npy"],
            r"a\.npy are 64 pixels high and those of small\.npy 32: prepare both",
        ),
        (
            ["--videos", "a.npy", "--data", "colored.npy", "--classifier", "gray.pt"],
            "there are videos of 3 channels, but the classifier takes 1",
        ),
        (["--videos", "text.txt"], r"the videos that .*text\.txt names do not exist"),
        (["--videos", "broken.mp4"], r"no video of broken\.mp4 can be used: it is not a video"),
        (
            ["--videos", "small.npy", "--metrics", "fvd", "--i3d", "i3d.pt"],
            "fvd needs videos of 16 frames of 64×64 pixels",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(digits, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").symlink_to(digits / "a.npy")
    random = np.random.default_rng(0)
    shapes = {"three": (3, 16, 64, 64, 1), "short": (6, 4, 64, 64, 1), "large": (6, 16, 80, 80, 1)}
    shapes |= {"small": (6, 16, 32, 32, 1), "colored": (6, 16, 64, 64, 3)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", random.integers(256, size=shape, dtype=np.uint8))
    (tmp_path / "text.txt").write_text("no/video.mp4\n")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    scripted(FrameMeans(), tmp_path / "i3d.pt")
    save_classifier(tmp_path / "gray.pt", random_classifier(channels=1))
    before = sorted(tmp_path.iterdir())
    given = {"--classifier": "digits", "--device": "cpu", "--out": "scores.json"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(InputError, match=message) as caught:
        command.main([word for name, value in given.items() if value for word in (name, value)])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
