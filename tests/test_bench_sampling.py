"""The benchmark of sampling compares what makes the same clips, and its floor is that of the layers."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_sampling as bench
from benchmarks.ceilings import Work
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Run
from tgan_fast.models.sampling import draw_latents

OWN = bench.fast("fp32")


@pytest.fixture(scope="module")
def network():
    return bench.make_network(bench.SMOKE_WIDTH, "cpu")


@pytest.fixture(scope="module")
def latents():
    return draw_latents(bench.SMOKE_BATCH, bench.LATENT_DIM, 0)


def makers(network, *rivals):
    return bench.makers_for(network, bench.SMOKE_BATCH, ["fp32"], rivals, "cpu")


def test_all_contenders_make_the_same_clips_in_which_most_levels_occur(network, latents):
    names = list(bench.RIVALS)[:-1]  # but the compiled one
    contenders, errors, left_out = bench.set_up(makers(network, *names), network, latents, "cpu")
    assert list(contenders) == [OWN, *names]
    assert max(errors.values()) < 0.5
    assert not left_out
    assert len(contenders[OWN](latents).unique()) > 200


def test_what_makes_other_clips_is_not_timed_and_excuses_nothing(network, latents):
    both = makers(network, bench.NOTEBOOK, bench.TUNED)
    notebook, own = both[bench.NOTEBOOK](), both[OWN]()
    both[bench.NOTEBOOK] = lambda: lambda z: notebook(z) ^ 8
    contenders, errors, left_out = bench.set_up(both, network, latents, "cpu")
    assert list(contenders) == list(errors) == [OWN, bench.TUNED]
    assert left_out[bench.NOTEBOOK].startswith("is off by 8.0")
    with pytest.raises(SystemExit, match=r"tgan_fast fp32 is off by .* nothing is timed"):
        bench.set_up(both | {OWN: lambda: lambda z: own(z) ^ 1}, network, latents, "cpu")


def test_the_floor_is_that_of_the_layers():
    """Of 64 clips. The image generator: 36.5, three times 68.7 and 7.2 GFLOP; 42, 101, 201, 403 and 281 MB."""

    def floor(*rates):
        ceilings = SimpleNamespace(floor=lambda work, precision: Work.seconds(work, *rates))
        return bench.floor_seconds(SimpleNamespace(ceilings=ceilings), 1.0, 64, "bf16")

    assert floor(1e9, 1e30) == pytest.approx(36.5 + 3 * 68.7 + 7.2, rel=0.01)
    assert floor(1e30, 1e6) == pytest.approx(42 + 101 + 201 + 403 + 281, rel=0.04)
    assert floor(800e12, 3e12) == pytest.approx(0.45e-3, rel=0.04)


def record(batch_size=64, **ratios):
    """Made-up, of contenders that take so many times as long as the first."""
    rows = [{"contender": name, "videos_per_second": 120_000 / ratio, "ratio": ratio} for name, ratio in ratios.items()]
    return {"batch_size": batch_size, "timings": rows}


def test_goals_are_those_of_a_gpu():
    def verdicts(*records):
        return [goal.verdict for goal in bench.goals_for(list(records), "cuda")]

    assert verdicts(record(bf16=1.0, notebook=7.9)) == ["met", "SHORT"]
    assert verdicts(record(bf16=1.0)) == ["met", NOT_MEASURED]
    assert verdicts() == verdicts(record(16, bf16=1.0, notebook=9.0)) == [NOT_MEASURED] * 2


def test_calls_are_those_of_the_contenders():
    run = Run("cpu", smoke=True)
    calls = bench.calls_for(run, bench.cases_for(run)[0])
    assert list(calls) == [OWN, bench.NOTEBOOK, bench.TUNED]
    assert calls[OWN]()().dtype == torch.uint8
