"""The benchmark of sampling compares contenders that make the same clips."""

import pytest

from benchmarks import bench_sampling as bench
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run

OWN, RUN = bench.fast("fp32"), Run("cpu", smoke=True)
CASE = bench.cases_for(RUN)[0]


@pytest.mark.parametrize(("wrong", "bits"), [(bench.NOTEBOOK, 8), (OWN, 1)])
def test_what_makes_other_clips_is_not_timed_and_excuses_nothing(wrong, bits, monkeypatch):
    made = bench.make

    def make(name, *arguments):
        contender = made(name, *arguments)
        return (lambda latents: contender(latents) ^ bits) if name == wrong else contender

    monkeypatch.setattr(bench, "make", make)
    if wrong == OWN:
        with pytest.raises(SystemExit, match=r"tgan_fast fp32 is off by .* nothing is timed"):
            bench.measure(RUN, CASE)
    else:
        record = bench.measure(RUN, CASE)
        assert [row["contender"] for row in record["timings"]] == [OWN, bench.TUNED, f"{OWN} again"]
        assert record["left_out"][bench.NOTEBOOK].startswith("is off by 8.0")
        assert record["timings"][0]["error"] < 0.5


def test_most_levels_occur_in_the_clips_of_all_contenders():
    for name, make in bench.calls_for(RUN, CASE).items():
        assert len(make()().unique()) > 150, name


def test_goals_are_those_of_a_gpu():
    def verdicts(batch_size, **ratios):
        rows = [{"contender": name, "videos_per_second": 120_000 / x, "ratio": x} for name, x in ratios.items()]
        return [goal.verdict for goal in bench.goals_for([{"batch_size": batch_size, "timings": rows}], "cuda")]

    assert verdicts(64, bf16=1.0, notebook=7.9) == ["met", "SHORT"]
    assert verdicts(64, bf16=1.0) == ["met", NOT_MEASURED]
    assert verdicts(16, bf16=1.0, notebook=9.0) == [NOT_MEASURED] * 2
