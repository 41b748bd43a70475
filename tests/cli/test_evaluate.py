"""`python -m tgan_fast evaluate` as its users run it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from support.classifiers import Means, random_classifier, scripted
from support.run_folders import write_filled

from tgan_fast import reference
from tgan_fast.cli import evaluate as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.metrics.classifier_files import save_classifier
from tgan_fast.training import TrainingConfig, train

VALUES = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2, "learning_rate": 0.02}
QUICK = ("--samples", "16", "--runs", "2", "--real-clips", "40", "--force", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(TrainingConfig(**VALUES, steps=3, ema_decay=0.5, device="cpu"), folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    # It knows the digits.
    save_classifier(path, dataclasses.replace(random_classifier(classes=10), classes=tuple("0123456789")))
    return path


def scores_in(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_scores_are_printed_and_kept_with_all_they_depend_on(run, classifier, capsys):
    arguments = ["--checkpoint", str(run), "--classifier", str(classifier), *QUICK]
    command.main(arguments)
    printed = capsys.readouterr()
    assert "protocol plain: 2 × 16 generated videos, seed 0, fp32, classifier " in printed.out
    assert "only 40 different real clips for 16 generated ones" not in printed.err
    record = scores_in(run)[-1]
    known = {"checkpoint": "iteration-00000003.pt", "iteration": 3, "weights": "ema", "protocol": "plain"}
    known |= {"samples": 16, "runs": 2, "seed": 0, "precision": "fp32", "remarks": []}
    assert {name: record[name] for name in known} == known
    assert record["environment"]["torch"] == torch.__version__
    for name, title in [("inception_score", "inception score"), ("frechet_distance", "Fréchet distance")]:
        assert record[name].keys() >= {"mean", "std", "real"}
        assert f"{record[name]['mean']:.4g} ± {record[name]['std']:.2g}" in printed.out
        assert title in printed.out
    assert (record["frechet_distance"]["layer"], record["frechet_distance"]["real_clips"]) == ("mean", 40)

    command.main(arguments)
    assert scores_in(run)[-1] == record
    command.main([*arguments, "--weights", "live"])
    assert scores_in(run)[-1]["weights"] == "live"
    assert scores_in(run)[-1]["frechet_distance"] != record["frechet_distance"]
    command.main([*arguments, "--seed", "7"])
    assert scores_in(run)[-1]["inception_score"]["mean"] != record["inception_score"]["mean"]


@pytest.mark.parametrize(("option", "calls"), [([], 1), (["--no-keep-memory"], 0)])
def test_memory_is_kept_unless_it_must_not(run, classifier, tmp_path, keep_memory, option, calls):
    arguments = ["--checkpoint", str(run), "--classifier", str(classifier), "--metrics", "is", *QUICK]
    command.main([*arguments, "--out", str(tmp_path / "scores.json"), *option])
    assert keep_memory.call_count == calls


def test_scores_go_into_a_file_that_is_named(run, classifier, tmp_path):
    before = len(scores_in(run)) if (run / "scores.jsonl").exists() else 0
    out = tmp_path / "scores.json"
    arguments = ["--checkpoint", str(run), "--classifier", str(classifier), "--metrics", "is", "--out", str(out)]
    command.main([*arguments, *QUICK])
    assert json.loads(out.read_text())["inception_score"]["mean"] >= 1
    assert before == (len(scores_in(run)) if (run / "scores.jsonl").exists() else 0)


def test_fvd_needs_no_classifier(run, tmp_path, capsys):
    i3d = scripted(Means(), tmp_path / "i3d_torchscript.pt")
    command.main(["--checkpoint", str(run), "--metrics", "fvd", "--i3d", str(i3d), *QUICK])
    assert "Fréchet video distance" in capsys.readouterr().out
    record = scores_in(run)[-1]
    assert record["classifier"] is None
    assert record["frechet_video_distance"]["mean"] > record["frechet_video_distance"]["real"]


def test_real_videos_are_what_is_given(run, classifier, tmp_path):
    clips = np.random.default_rng(0).integers(256, size=(40, 16, 64, 64, 1), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", clips)
    arguments = ["--checkpoint", str(run), "--classifier", str(classifier), *QUICK]
    command.main([*arguments, "--data", str(tmp_path / "noise.npy")])
    of_noise = scores_in(run)[-1]
    command.main(arguments)
    of_digits = scores_in(run)[-1]
    assert of_noise["inception_score"]["mean"] == of_digits["inception_score"]["mean"]
    assert of_noise["inception_score"]["real"] != of_digits["inception_score"]["real"]
    assert of_noise["frechet_distance"]["mean"] != of_digits["frechet_distance"]["mean"]


@pytest.mark.slow
def test_c3d_scores_the_notebooks_checkpoint_without_data(tmp_path, c3d_files, capsys):
    networks = [reference.Generator().state_dict(), reference.Discriminator().state_dict()]
    checkpoint = tmp_path / "state_normal81000.ckpt"
    torch.save({"epoch": 81000, "model_state_dict": networks, "optimizer_state_dict": [{}, {}]}, checkpoint)
    weights, mean = map(str, c3d_files)
    arguments = ["--checkpoint", str(checkpoint), "--samples", "3", "--runs", "1", "--device", "cpu"]
    c3d = ["--classifier", weights, "--mean", mean, "--protocol", "tgan"]
    command.main([*arguments, *c3d, "--metrics", "is", "--out", str(tmp_path / "x.json")])
    record = json.loads((tmp_path / "x.json").read_text())
    assert (record["iteration"], record["protocol"], record["weights"]) == (81000, "tgan", "live")
    assert 1 <= record["inception_score"]["mean"] <= 3
    assert "real" not in record["inception_score"]
    save_classifier(tmp_path / "small.pt", random_classifier(channels=3))
    with pytest.raises(InputError, match="does not say what it was trained on: give --data"):
        command.main([*arguments, "--classifier", str(tmp_path / "small.pt")])


def test_a_reduced_precision_tells_what_it_changes(run, classifier, capsys):
    command.main(["--checkpoint", str(run), "--classifier", str(classifier), *QUICK, "--precision", "bf16"])
    (notice,) = scores_in(run)[-1]["remarks"]
    assert notice.startswith("the classifier in bf16 instead of fp32: probabilities differ by ")
    assert notice in capsys.readouterr().err


def test_a_classifier_of_other_videos_is_noticed(run, classifier, tmp_path, capsys):
    save_classifier(tmp_path / "other.pt", random_classifier(classes=2))
    command.main(["--checkpoint", str(run), "--classifier", str(tmp_path / "other.pt"), *QUICK])
    (notice,) = scores_in(run)[-1]["remarks"]
    assert notice.startswith("the classifier knows a, b, but not 0, 1, 2 and 7 more, found in the videos: ")
    assert notice in capsys.readouterr().err
    # Videos with classes of their own, and videos of which nothing is known.
    clips = np.random.default_rng(0).integers(256, size=(40, 16, 64, 64, 1), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", clips=clips, labels=np.array([7, 20])[np.arange(40) % 2])
    np.save(tmp_path / "clips.npy", clips)
    for name, notices in (("clips.npz", 1), ("clips.npy", 0)):
        command.main(
            ["--checkpoint", str(run), "--classifier", str(classifier), "--data", str(tmp_path / name), *QUICK]
        )
        assert len(scores_in(run)[-1]["remarks"]) == notices


def test_few_real_clips_are_noticed(run, classifier, capsys):
    quick = ["--samples", "64", "--runs", "1", "--real-clips", "40", "--force", "--device", "cpu"]
    command.main(["--checkpoint", str(run), "--classifier", str(classifier), *quick])
    (notice,) = scores_in(run)[-1]["remarks"]
    assert "only 40 different real clips for 64 generated ones" in notice
    assert notice in capsys.readouterr().err


def test_broken_weights_are_named(run, classifier, tmp_path):
    checkpoint = run / "checkpoints" / "iteration-00000003.pt"
    broken = write_filled(tmp_path / "broken.pt", checkpoint, "ema", {"model.0.weight": math.nan})
    with pytest.raises(NonFiniteError, match=r"broken\.pt cannot be used, because model\.0\.weight is not finite"):
        command.main(["--checkpoint", str(broken), "--classifier", str(classifier), *QUICK])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "is,fit"], r"there is no metric 'fit'; did you mean fid\?: choose from is,fid,fvd"),
        (["--metrics", ","], "--metrics is empty"),
        (["--metrics", "fvd"], r"fvd needs --i3d i3d_torchscript\.pt"),
        (
            ["--classifier", "", "--data", "clips.npy"],
            r"is and fid need --classifier: conv3d_deepnetA_ucf\.npz with --mean mean2\.npz, .* or digits for moving",
        ),
        (["--classifier", "nothing.pt"], r"there is no classifier nothing\.pt"),
        (["--checkpoint", "nothing.pt"], r"there is no checkpoint nothing\.pt"),
        (["--data", "nothing"], "there is no nothing"),
        (["--samples", "1"], "--samples is 1, but must be at least 2"),
        (["--samples", str(10**12)], "--samples is 10+, but must be at most 1,000,000"),
        (["--runs", "0"], "--runs is 0, but must be at least 1"),
        (["--runs", str(10**12)], "--runs is 10+, but must be at most 1,000"),
        (["--real-clips", str(10**12)], "--real-clips is 10+, but must be at most 1,000,000"),
        (["--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--seed", str(10**20)], "--seed is 10+, but must be at most 9,223,372,036,854,775,807"),
        (["--real-clips", "1"], "--real-clips is 1, but must be at least 2"),
        (["--real-clips", "100"], "only 100 different real clips, too few .* accept them by --force"),
        (["--protocol", "tgan2"], "the protocol tgan2 is for classifiers of the architecture c3d, not small"),
        (["--layer", "fc6"], "there is no layer 'fc6' to take features from: choose mean"),
        (["--mean", "mean2.npz"], "needs no mean: leave out"),
        (["--out", "nowhere/x.json"], r"cannot write nowhere/x\.json: there is no folder nowhere"),
        (["--precision", "tf32"], "the CPU does not compute in TF32"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
        (["--clasifier", "x"], "there is no option --clasifier; did you mean --classifier"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, classifier, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = {"--checkpoint": str(run), "--classifier": str(classifier), "--device": "cpu"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    lines = len(scores_in(run)) if (run / "scores.jsonl").exists() else 0
    with pytest.raises(InputError, match=message) as caught:
        command.main([word for name, value in given.items() if value for word in (name, value)])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert lines == (len(scores_in(run)) if (run / "scores.jsonl").exists() else 0)


def test_a_classifier_for_other_channels_is_refused(run, tmp_path):
    save_classifier(tmp_path / "c.pt", random_classifier(channels=3))
    colored = TrainingConfig(**VALUES | {"channels": 3}, steps=1, device="cpu")
    train(colored, tmp_path / "colored")
    save_classifier(tmp_path / "gray.pt", random_classifier(channels=1))
    with pytest.raises(InputError, match="makes videos of 3 channels, but the classifier takes 1"):
        command.main(["--checkpoint", str(tmp_path / "colored"), "--classifier", str(tmp_path / "gray.pt"), *QUICK])
    command.main(["--checkpoint", str(run), "--classifier", str(tmp_path / "c.pt"), *QUICK])
