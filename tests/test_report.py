"""README.md and benchmarks/README.md say what the files of results say."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import report, results
from benchmarks.results import NOT_MEASURED
from benchmarks.table import number, percent, seconds, spread

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tree(tmp_path):
    """The texts of this tree and results of its first CPU."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name in ("README.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(min(results.FOLDER.glob("cpu*.json")), folder / "cpu.json")
    return tmp_path


def written(tree):
    report.write(tree)
    report.refuse_stale(tree)
    return (tree / "README.md").read_text(), (tree / "benchmarks" / "README.md").read_text()


def change(tree, edit, name="cpu.json"):
    """Write the results of the CPU, changed, to a file."""
    folder = tree / "benchmarks" / "results"
    sections = results.sections_of(folder / "cpu.json")
    edit(sections)
    (folder / name).write_text(json.dumps({"schema": results.SCHEMA, "sections": sections}))


def line_with(text, begin):
    (found,) = [line for line in text.splitlines() if line.startswith(begin)]
    return found


def test_the_texts_of_this_tree_say_what_its_files_of_results_say(capsys):
    report.refuse_stale()
    report.print_tables()
    printed = capsys.readouterr().out
    records = [r for device in report.devices_in(results.FOLDER) for s in report.SECTIONS for r in device.cases(s.name)]
    assert records
    assert all(record["case"] in printed for record in records)


def test_what_changes_is_noticed_and_written(tree):
    folder = tree / "benchmarks" / "results"
    texts = written(tree)
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert sorted(pictures) == ["cpu-iteration.png", "cpu-roofline.png", "cpu-speedup.png"]
    assert written(tree) == texts
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == pictures

    def slower(sections):
        sections["sampling"]["cases"][0]["timings"][0] |= {"seconds": 0.3, "p10": 0.25, "p90": 1.25}

    change(tree, slower)
    with pytest.raises(SystemExit, match=r"README\.md is older than the files of results: run python -m benchmarks"):
        report.refuse_stale(tree)
    for text in written(tree):
        assert " | 300 ms (0.250–1.25 s) | " in line_with(text, "| sampling |")
    (folder / "cpu-roofline.png").unlink()
    with pytest.raises(SystemExit, match=r"roofline\.png is older"):
        report.refuse_stale(tree)


def test_a_gpu_appears_everywhere_once_it_has_a_file(tree):
    readme, page = written(tree)
    assert "not measured yet on a GPU" in line_with(readme, "- Videos a second")
    assert line_with(page, "| `sampling` | videos/s").endswith(f"| {NOT_MEASURED} |")
    goal = {"text": "videos/s", "measured": 9.0, "bound": 10, "at_most": False, "verdict": "SHORT"}

    def on_gpu(sections):
        for payload in sections.values():
            payload["environment"] |= {"device": "Some GPU", "threads": None}
        sections["sampling"]["goals"] = [goal]

    change(tree, on_gpu, "gpu.json")
    readme, page = written(tree)
    assert "not measured yet on a GPU" not in line_with(readme, "- Videos a second")
    assert "31 %, 31 % on Some GPU" in readme
    assert line_with(page, "| section | goal").endswith("| Some GPU |")
    assert line_with(page, "| `sampling` | videos/s | ≥ 10 |").endswith("|  | 9 🔴 SHORT |")
    assert "(results/gpu-speedup.png)" in page


def test_what_was_not_measured_is_said(tree):
    def own_only(sections):
        record = sections["step"]["cases"][0]
        record["timings"] = [row for row in record["timings"] if row["contender"].startswith("tgan_fast")]
        del sections["systems"], sections["breakdown"], sections["convolutions"]

    change(tree, own_only)
    assert f"| {NOT_MEASURED} | {NOT_MEASURED} | 1.03 s" in line_with(written(tree)[0], "| training iteration")
    (tree / "benchmarks" / "results" / "cpu.json").unlink()
    assert line_with(written(tree)[1], "| section | goal").endswith("| CPU | GPU |")


@pytest.mark.parametrize("text", ["<!-- figure: other --><!-- end -->", "<!-- figure: x -->", 2 * "<!-- figure: x -->"])
def test_markers_that_make_no_sense_are_refused(text):
    with pytest.raises(SystemExit, match=r"error: a text: <!-- figure: \w+ --> has no end, or is none of x"):
        report.filled(text, {"x": str}, "a text")


def test_numbers_are_short():
    texts = {0: "0", 0.012345: "0.0123", 9.996: "10.0", 123.4: "123", 3840: "3,840", -10.04: "-10.0"}
    assert {value: number(value) for value in texts} == texts
    assert [seconds(value) for value in (1.92, 0.0205, 0.000151)] == ["1.92 s", "20.5 ms", "151 µs"]
    assert spread(0.9, 1.2) == "0.900–1.20 s"
    assert [percent(share) for share in (0, 0.0001, 0.004, 0.5)] == ["0 %", "< 0.1 %", "0.4 %", "50 %"]
