"""README.md and benchmarks/README.md say what the files of results say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import bench_singular_value_clip, render, result_files, suite
from benchmarks.formatting import percent, seconds, three_digits
from benchmarks.result_files import NOT_MEASURED
from benchmarks.spectra import SPECTRA

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """Copy the texts of this repository and the results of its first CPU."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/variants.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(min(result_files.FOLDER.glob("cpu*.json")), tmp_path / "benchmarks" / "results" / "cpu.json")
    return tmp_path


def written(tree, edit=lambda sections: None, name="cpu.json"):
    """Write the results of the CPU, changed, to a file, and return the texts."""
    folder = tree / "benchmarks" / "results"
    sections = result_files.sections_of(folder / "cpu.json")
    edit(sections)
    (folder / name).write_text(json.dumps({"schema": result_files.SCHEMA, "sections": sections}))
    render.write_texts(tree)
    render.refuse_stale(tree)
    return (tree / "README.md").read_text(), (tree / "benchmarks" / "README.md").read_text()


def line_with(text, begin):
    (found,) = [line for line in text.splitlines() if line.startswith(begin)]
    return found


def test_the_texts_of_this_tree_say_what_its_files_of_results_say(capsys):
    render.refuse_stale()
    render.print_tables()
    printed = capsys.readouterr().out
    records = [
        r for device in render.devices_in(result_files.FOLDER) for s in render.SECTIONS for r in device.cases(s.name)
    ]
    assert records
    assert all(record["case"] in printed for record in records)


def test_what_changes_is_noticed_and_written(tree):
    def slower_and_own_only(sections):
        sections["sampling"]["cases"][0]["timings"][0] |= {"seconds": 0.3, "p10": 0.25, "p90": 1.25}
        record = sections["step"]["cases"][0]
        record["timings"] = [row for row in record["timings"] if row["contender"].startswith("tgan_fast")]

    texts = written(tree)
    (picture,) = (tree / "benchmarks" / "results").glob("*.png")
    drawn = picture.read_bytes()
    assert written(tree) == texts
    assert picture.read_bytes() == drawn
    for text in written(tree, slower_and_own_only):
        assert "**300 ms** (0.250–1.25 s)<br>" in line_with(text, "| sampling |")
        own_only = r"\*\* \([^)]+\) \|$"
        assert re.search(own_only, line_with(text, "| training iteration"))
    picture.unlink()
    with pytest.raises(SystemExit, match=r"README\.md is older than the files of results: run python -m benchmarks"):
        render.refuse_stale(tree)


def test_a_gpu_appears_once_it_has_a_file(tree):
    def on_gpu(sections):
        for payload in sections.values():
            payload["environment"] |= {"device": "Some GPU", "threads": None}
        sections.pop("batch_norm_act")
        goal = {"text": "videos/s", "measured": 9.0, "bound": 10, "at_most": False, "verdict": "SHORT"}
        sections["sampling"]["goals"] = [goal]

    readme, page = written(tree)
    assert line_with(readme, "| sampling |").count("|") == 3
    assert line_with(page, "| `sampling` | videos/s").endswith("| ≥ 120,000 |")
    assert f"Goals for a GPU, {NOT_MEASURED}:" in page
    readme, page = written(tree, on_gpu, "gpu.json")
    assert line_with(readme, "| sampling |").count("**") == 4
    assert line_with(page, "| section | goal").endswith("| Some GPU |")
    assert line_with(page, "| `sampling` | videos/s | ≥ 10 |").endswith("|  | 9 🔴 SHORT |")
    assert "(results/gpu-iteration.png)" in page


def test_each_weight_of_a_transformer_has_a_table_of_its_errors(tree):
    def without_transformers(sections):
        section = sections["singular_value_clip"]
        section["cases"] = [case for case in section["cases"] if "spectra" not in case]

    def measured(sections):
        without_transformers(sections)
        run = suite.Suite(suite.Run("cpu", smoke=True))
        cases = [run.record(bench_singular_value_clip.SECTION, size) for size in bench_singular_value_clip.SMOKE_SIZES]
        cases[0]["left_out"]["absent"] = "not installed"
        sections["singular_value_clip"]["cases"] += cases
        sections["singular_value_clip"]["environment"]["python"] = "3.99"

    _, page = written(tree, without_transformers)
    assert f"The weights of transformers are {NOT_MEASURED}." in page
    _, page = written(tree, measured)
    assert NOT_MEASURED not in page.partition("figure: clipping")[2].partition("<!-- end -->")[0]
    assert re.search(r"^transformer 24×40: .*, Python 3\.99\.$", page, re.MULTILINE)
    assert "absent is left out: not installed." in page.splitlines()
    assert re.search(r"^transformer 2×16×16: .*; only checked on gaussian and log-spaced", page, re.MULTILINE)
    heads = [line for line in page.splitlines() if line.startswith("| contender |")]
    assert [head.count("error, ") for head in heads] == [len(SPECTRA), 2]
    assert len(re.findall(r"^\| auto \| .*(\| \d\.\de-08 ){2}\|$", page, re.MULTILINE)) == 2
    assert re.search(r"python 3\.[\d.]+ and 3\.99, ", page)


@pytest.mark.parametrize("text", ["", "<!-- figure: x -->\n"])
def test_a_text_without_a_figure_is_refused(text):
    with pytest.raises(SystemExit, match="error: a text has no figure x with an end"):
        render.filled(text, {"x": str}, "a text")


def test_numbers_are_short():
    texts = {0: "0", 0.012345: "0.0123", 9.996: "10.0", 123.4: "123", 3840: "3,840", -10.04: "-10.0"}
    assert {value: three_digits(value) for value in texts} == texts
    assert [seconds(value) for value in (1.92, 0.0205, 0.000151)] == ["1.92 s", "20.5 ms", "151 µs"]
    assert [percent(share) for share in (0, 0.0001, 0.004, 0.5)] == ["0 %", "< 0.1 %", "0.4 %", "50 %"]
