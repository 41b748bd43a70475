"""Statistics of real clips: against NumPy, cached under everything they depend on, and refused for too few clips."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.classifiers import random_classifier, seen_by

from tgan_fast.data import MovingDigits
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.metrics.frechet import Gaussian, frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.metrics.real_clips import draw_clips
from tgan_fast.metrics.real_statistics import RealClips, StatisticsCache, default_cache

PROTOCOL = replace(PROTOCOLS["plain"], samples=20, runs=2, real_clips=50)
CLASSIFIER = random_classifier()


def statistics_of(real, cache=None, protocol=PROTOCOL, classifier=CLASSIFIER):
    """Return the statistics, and the number of clips that were read for them."""
    seen = []
    result = real.statistics(seen_by(classifier), protocol, cache, seen.append)
    return result, sum(seen)


def test_they_are_those_of_the_clips_that_are_drawn():
    dataset = MovingDigits(400)
    got, seen = statistics_of(RealClips(dataset))
    clips = torch.cat([clips for clips, _ in draw_clips(dataset, 50, seed=0, batch_size=64)])
    others = torch.cat([clips for clips, _ in draw_clips(dataset, 20, seed=(0, 1), batch_size=64)])
    probabilities, features = seen_by(CLASSIFIER).of_real(clips)
    rows = features.double().numpy()
    np.testing.assert_allclose(got.gaussian.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.gaussian.covariance, np.cov(rows.T), rtol=1e-9, atol=1e-12)
    assert (got.clips, seen) == (50, 70)
    gaussian = Gaussian(torch.from_numpy(rows.mean(0)), torch.from_numpy(np.cov(rows.T)))
    expected = frechet_distance(seen_by(CLASSIFIER).of_real(others).features, gaussian)
    assert got.frechet_distance == pytest.approx(expected, rel=1e-6)
    runs = [probabilities[:20], probabilities[20:40]]
    assert got.inception_scores == pytest.approx([inception_score(run, epsilon=1e-20) for run in runs])


def test_fewer_clips_than_a_run_has_are_scored_together():
    got, _ = statistics_of(RealClips(MovingDigits(400), count=15))
    assert (got.clips, len(got.inception_scores)) == (15, 1)


def test_the_cache_gives_the_same_back_without_seeing_a_clip(tmp_path):
    cache, real = StatisticsCache(tmp_path / "new" / "cache"), RealClips(MovingDigits(400))
    first, seen = statistics_of(real, cache)
    again, seen_again = statistics_of(RealClips(MovingDigits(400)), cache)
    assert (seen, seen_again) == (70, 0)
    assert torch.equal(first.gaussian.covariance, again.gaussian.covariance)
    assert (first.clips, first.frechet_distance, first.inception_scores) == (
        again.clips,
        again.frechet_distance,
        again.inception_scores,
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"real": RealClips(MovingDigits(401))},
        {"real": RealClips(MovingDigits(400), count=49)},
        {"real": RealClips(MovingDigits(400), seed=1)},
        {"protocol": replace(PROTOCOL, samples=21)},
        {"classifier": random_classifier(seed=1)},
    ],
    ids=["data", "count", "seed", "samples", "classifier"],
)
def test_what_they_depend_on_is_not_read_from_the_cache(tmp_path, changed):
    cache = StatisticsCache(tmp_path)
    statistics_of(RealClips(MovingDigits(400)), cache)
    assert statistics_of(**{"real": RealClips(MovingDigits(400)), "cache": cache} | changed)[1] > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: b"x" * 500,
        lambda content: content.replace(b"covariance.npy", b"covarianca.npy"),
    ],
    ids=["cut", "empty", "other", "renamed"],
)
def test_a_damaged_file_in_the_cache_is_made_anew(tmp_path, damage):
    cache, real = StatisticsCache(tmp_path), RealClips(MovingDigits(400))
    statistics_of(real, cache)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert statistics_of(real, cache)[1] == 70
    assert file.read_bytes() == whole


def test_flipped_bits_in_the_cache_are_noticed_or_do_no_harm(tmp_path):
    cache, random = StatisticsCache(tmp_path), np.random.default_rng(0)
    arrays = {"mean": np.arange(8.0), "clips": np.array(5)}
    cache.write({}, arrays)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        got = cache.read({}, arrays)
        assert got is None or all(np.array_equal(got[name], arrays[name]) for name in arrays)


def test_a_cache_that_cannot_be_written_to_is_said_and_does_no_harm(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    got, _ = statistics_of(RealClips(MovingDigits(400)), StatisticsCache(tmp_path / "file" / "cache"))
    assert got.clips == 50
    assert re.search(r"cannot be cached in .*cache: Not a directory", capsys.readouterr().err)


def test_clips_that_cannot_be_identified_are_not_kept(tmp_path):
    class Derived(MovingDigits):
        pass

    cache = StatisticsCache(tmp_path)
    assert [statistics_of(RealClips(Derived(400)), cache)[1] for _ in range(2)] == [70, 70]
    assert not list(tmp_path.iterdir())


def test_too_few_clips_are_refused_unless_they_are_forced():
    with pytest.raises(InputError, match=r"only 255 different real clips, too few .* accept them by --force"):
        RealClips(MovingDigits(255)).bias(PROTOCOLS["plain"])
    assert "only 255 different" in RealClips(MovingDigits(255), force=True).bias(PROTOCOLS["plain"])
    assert "clips raise Fréchet distances" in RealClips(MovingDigits(256)).bias(PROTOCOLS["plain"])
    assert "only 300 different real clips for 2,048" in RealClips(MovingDigits(5000), 300).bias(PROTOCOLS["plain"])
    assert RealClips(MovingDigits(2048)).bias(PROTOCOLS["plain"]) is None


def test_how_many_clips_statistics_are_of():
    plain = PROTOCOLS["plain"]
    assert RealClips(MovingDigits(100_000)).count_for(plain) == 4096
    assert RealClips(MovingDigits(30)).count_for(plain) == 30
    assert RealClips(MovingDigits(30), 77).count_for(plain) == 77
    assert RealClips(MovingDigits(100_000)).count_for(PROTOCOLS["tgan2"]) == 20480


def test_features_that_are_not_finite_are_named():
    classifier = random_classifier(seed=2)
    classifier.network.layers[1].weight.data[3] = torch.nan
    with pytest.raises(NonFiniteError, match="features of real clips are not finite"):
        statistics_of(RealClips(MovingDigits(400)), classifier=classifier)


def test_the_users_folder_of_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().folder == tmp_path / "tgan_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache().folder == tmp_path / "home" / ".cache" / "tgan_fast"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that the system does not know")
def test_a_user_without_a_home_has_no_cache(tmp_path):
    program = (
        "import os; os.setresuid(54321, 0, 0)\n"
        "from tgan_fast.metrics.real_statistics import default_cache\n"
        "assert default_cache() is None"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
