"""Reading of run folders: complete, unfinished and damaged ones."""

import pytest
from support.run_folders import evaluation_line, lines_of, loss_line, score_record, write_run

from tgan_fast.errors import InputError
from tgan_fast.metrics.score_kinds import SCORE_KINDS
from tgan_fast.reports.recorded_run import best_of, last_of, open_run


def test_all_that_a_run_has_recorded_is_read(tmp_path):
    run = open_run(write_run(tmp_path / "run", scores=[score_record()], config={"seed": 7}))
    assert (run.name, run.iterations, run.seconds) == ("run", 30, 15.0)
    assert [line.iteration for line in run.losses] == [line.iteration for line in run.evaluations] == [10, 20, 30]
    assert run.config["seed"] == 7
    assert run.starts[0]["torch"] == "2.99.1"
    assert run.samples.name == "00000020.gif"
    assert run.scores[0].inception_score.mean == 11.854
    assert (run.has_best, run.left_out) == (False, None)


def test_the_best_is_the_highest_inception_score_and_the_lowest_distance(tmp_path):
    run = open_run(write_run(tmp_path / "run"))
    inception_score, frechet_distance, video_distance, frame_distance = SCORE_KINDS
    assert best_of(run.evaluations, inception_score).iteration == 20
    assert best_of(run.evaluations, frechet_distance).frechet_distance == 70.5
    assert last_of(run.evaluations, frechet_distance).frechet_distance == 80.0
    assert best_of(run.evaluations, video_distance) is None
    assert best_of(run.evaluations, frame_distance) is None


def test_an_empty_run_and_an_unfinished_line_are_no_damage(tmp_path):
    folder = write_run(tmp_path / "run", samples=False)
    (folder / "stats.jsonl").write_bytes(lines_of([loss_line(10)]).encode() + b'{"iteration": 20, "loss\xc3')
    run = open_run(folder)
    assert [line.iteration for line in run.losses] == [10]
    (folder / "stats.jsonl").unlink()
    run = open_run(folder)
    assert (run.losses, run.evaluations, run.scores, run.samples, run.iterations) == ([], [], [], None, 0)


def test_after_a_change_of_classifier_only_the_later_scores_are_comparable(tmp_path):
    lines = [evaluation_line(10, 1.0, 9.0, classifier="old"), evaluation_line(20, 2.0, 3.0)]
    run = open_run(write_run(tmp_path / "run", evaluations=lines))
    assert [line.iteration for line in run.comparable] == [20]
    assert run.left_out.startswith("1 evaluations under another protocol or with another classifier")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stats.jsonl", "nonsense\n", r"stats\.jsonl, line 1 is damaged: it is not a JSON object"),
        ("stats.jsonl", lines_of([loss_line(1), {"iteration": 2}]), r"line 2 is damaged: seconds: field required"),
        (
            "stats.jsonl",
            lines_of([loss_line(1) | {"iteration": "ten"}]),
            r"line 1 is damaged: iteration: it must be a valid integer",
        ),
        ("stats.jsonl", lines_of([evaluation_line(1, float("nan"), 2.0)]), r"inception_score: it must be a finite"),
        ("stats.jsonl", lines_of([evaluation_line(1, 1e308, 2.0)]), r"inception_score: it must be less than"),
        ("stats.jsonl", lines_of([loss_line(1, seconds=float("inf"))]), r"seconds: it must be a finite number"),
        ("stats.jsonl", lines_of([loss_line(10**30)]), r"iteration: it must be less than or equal to 9007199254740992"),
        ("stats.jsonl", lines_of([loss_line(-1)]), r"iteration: it must be greater than or equal to 0"),
        ("scores.jsonl", "[1, 2]\n", r"scores\.jsonl, line 1 is damaged: it is not a JSON object"),
        ("scores.jsonl", lines_of([score_record(samples="many")]), "line 1 is damaged: samples: it must be"),
        ("environment.jsonl", lines_of([{"torch": [1]}]), "torch is list, but must be text or a number"),
        ("config.yaml", "a: b: c", r"config\.yaml, line 1, is damaged: it is not YAML"),
        ("config.yaml", "text", "must hold lines of 'key: value'"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_run(folder)
    assert str(folder) in str(caught.value)


def test_other_folders_are_no_runs(tmp_path):
    with pytest.raises(InputError, match="nothing does not exist; give the folder that"):
        open_run(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"is not a run folder: it has no config\.yaml"):
        open_run(tmp_path)
