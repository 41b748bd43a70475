"""Curves show the numbers that were recorded, and no scores that cannot be compared."""

import os
import subprocess
import sys

import pytest
from support.run_folders import EVALUATIONS, evaluation_line, loss_line

from tgan_fast.errors import InputError
from tgan_fast.reports.curves import bytes_of, loss_figure, score_figure
from tgan_fast.reports.recorded_run import Evaluation, Losses


def evaluations(lines=EVALUATIONS):
    return [Evaluation(**line) for line in lines]


def points_of(axes):
    """Return the points of the curves, without the marks of the best ones."""
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines if len(line.get_xdata()) > 1]


def test_losses_are_drawn_against_iterations():
    lines = [Losses(**loss_line(10)), Losses(**loss_line(20, loss_discriminator=-2.5))]
    (axes,) = loss_figure("a run", lines).axes
    assert points_of(axes) == [[(10, -1.5), (20, -2.5)], [(10, 0.25), (20, 0.25)]]
    assert axes.get_title() == "a run"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "loss of the discriminator",
        "loss of the generator",
    ]


def test_scores_are_drawn_against_iterations_and_time_side_by_side():
    other = evaluations([evaluation_line(10, 1.0, 500.0), evaluation_line(30, 4.0, 60.0)])
    figure = score_figure({"with": evaluations(), "without": other})
    score, score_by_time, distance, distance_by_time = figure.axes
    assert points_of(score) == [[(10, 1.25), (20, 3.5), (30, 2.0)], [(10, 1.0), (30, 4.0)]]
    assert points_of(score_by_time)[1] == [(5.0, 1.0), (15.0, 4.0)]
    assert points_of(distance)[0] == [(10, 900.0), (20, 70.5), (30, 80.0)]
    assert points_of(distance_by_time)[0] == [(5.0, 900.0), (10.0, 70.5), (15.0, 80.0)]
    assert distance_by_time.get_xlabel() == "seconds of training"
    assert {text.get_text() for text in distance.texts} == {"70.50", "60.00"}
    assert "plain, 1 × 64 samples" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["with", "without"]


def test_a_score_that_one_run_lacks_is_drawn_of_the_other():
    only_distance = [Evaluation(**line | {"inception_score": None}) for line in EVALUATIONS]
    score, _, distance, _ = score_figure({"a": evaluations(), "b": only_distance}).axes
    assert len(points_of(score)) == 1
    assert len(points_of(distance)) == 2
    assert len(score_figure({"b": only_distance}).axes) == 2


@pytest.mark.parametrize(("what", "value"), [("protocol", "plain, 1 × 2,048 samples"), ("classifier", "other")])
def test_scores_that_mean_different_things_are_not_drawn_together(what, value):
    other = evaluations([evaluation_line(10, 1.0, 500.0, **{what: value})])
    with pytest.raises(
        InputError, match=rf"scores of a and b cannot be compared: the {what} of the first is .*{value}"
    ):
        score_figure({"a": evaluations(), "b": other})


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_are_the_same_for_the_same_numbers(form, start):
    pictures = [bytes_of(score_figure({"a $x_1$ <b>": evaluations()}), form) for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(start)


DRAW = """
import sys
from tgan_fast.reports.curves import bytes_of, loss_figure
sys.stdout.buffer.write(bytes_of(loss_figure("a run", []), "png"))
"""
HOMES = {
    "missing": {"HOME": "/proc/none"},
    "a file": {"HOME": os.devnull},
    "unset": {},
    "of nobody": {"become": "import os; os.setresuid(54321, 0, 0)"},
}


@pytest.mark.parametrize("home", HOMES)
def test_curves_are_drawn_wherever_nothing_can_be_kept(home):
    if home == "of nobody" and os.getuid() != 0:
        pytest.skip("only root can become a user that the system does not know")
    names = "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"
    environment = {name: value for name, value in os.environ.items() if name not in names}
    options = dict(HOMES[home])
    program = options.pop("become", "") + DRAW
    # No user can write to /proc.
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/proc", env=environment | options, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\x89PNG")
