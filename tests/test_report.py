"""README.md and benchmarks/README.md say what the files of results say."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_optimizer, report, results
from benchmarks.bench_step import WITH_CLIPPING
from benchmarks.report import plots
from benchmarks.report.markdown import filled, number, percent, seconds, spread
from benchmarks.report.measured import devices_in
from benchmarks.results import NOT_MEASURED, Goal
from benchmarks.suite import Run, Suite

ROOT = Path(__file__).resolve().parent.parent
CPU, GPU = "cpu-some-2-threads", "some-gpu"
CEILINGS = {"copy": 20e9, "fp32": 100e9}
GPU_STATE = {
    "looks": 9,
    "sm_clock_mhz": {"min": 1700, "median": 1980, "max": 1980},
    "sm_clock_limit_mhz": 1980,
    "memory_clock_mhz": {"min": 2619, "median": 2619, "max": 2619},
    "power_w": {"min": 101.5, "median": 450.0, "max": 650.0},
    "power_limit_w": 700.0,
    "highest_temperature_c": 61,
    "throttle_reasons": {"software power cap": 0.2},
    "most_memory_used_bytes": 1 << 30,
}


def row(contender, seconds, part=None, work=None, **more):
    """As `Run.row` makes it, for work of so many FLOP and bytes."""
    timing = {"seconds": seconds, "p10": 0.9 * seconds, "p90": 1.2 * seconds, "method": "perf_counter"}
    if work is not None:
        floor = max(work[0] / CEILINGS["fp32"], work[1] / CEILINGS["copy"])
        more |= {"flops": work[0], "bytes": work[1], "floor_seconds": floor, "share_of_floor": floor / seconds}
    return {"contender": contender, "part": part, **timing, **more}


def case(name, timings, **more):
    base = {"case": name, "timings": timings, "rivals": [], "left_out": {}, "flags": [], "wall_seconds": 2.0}
    return base | {"state": {"others": 0.02, "steal": 0.001}} | more


def step(rivals=("notebook", "tuned eager"), **more):
    rows = [
        row("tgan_fast fp32", 2.0, WITH_CLIPPING, error={"first": 2e-7, "last": None}),
        row("notebook", 5.0, WITH_CLIPPING, error=3e-7),
        row("tuned eager", 3.0, WITH_CLIPPING, error=None),
        row("tgan_fast fp32 again", 2.1, WITH_CLIPPING),
    ]
    rows = [row for row in rows if row["contender"].startswith("tgan_fast") or row["contender"] in rivals]
    return case("batch 8", rows, rivals=rivals, svd_seconds=None, **more)


def breakdown():
    groups = [
        {"group": "deconvolutions", "seconds": 1.2, "floor_seconds": 0.6},
        {"group": "Conv3d", "seconds": 0.9, "floor_seconds": 0.3},
        {"group": "launch gaps", "seconds": -0.1, "floor_seconds": 0.0},
    ]
    more = {"groups": groups, "parts": [], "largest_gaps": []}
    return case("batch 8", [row("tgan_fast", 2.0, work=(9e10, 6e9)), row("tgan_fast again", 2.0)], **more)


def layer(name, flops, nbytes):
    forms = {"operation": "conv3d_halving", "x": [8, 3], "weight": [4, 3], "dtype": "float32"}
    forms |= {"table": ["direct", "direct", "direct"], "best": ["pairs", "direct", "direct"]}
    rows = [
        row("direct", 3.0, "forward", (flops, nbytes)),
        row("pairs", 2.0, "forward", (flops, nbytes)),
        row("direct", 4.0, "input_gradient", (flops, nbytes)),
    ]
    return case(name, rows, **forms)


def section(title, cases, goals=(), **more):
    environment = {
        "device": "some",
        "threads": 2,
        "torch": "2.13.0",
        "triton": None,
        "cuda": None,
        "cudnn": None,
        "python": "3.12.1",
        "commit": "0123abc",
        "command": "python -m benchmarks",
    }
    goals = [goal.record() for goal in goals]
    return {"environment": environment, "title": title, "ceilings": CEILINGS, "goals": goals, "cases": cases, **more}


def sections(**more):
    layers = [layer(f"convolution {index}", 1e10 * index, 2e8) for index in (1, 2, 3)]
    goal = Goal("times as fast as the notebook, clipping included", 2.5, 2, at_most=False)
    verdicts = {"verdicts": [], "device_type": "cpu"}
    return {
        "step": section("an iteration", [step()], [goal]),
        "breakdown": section("where the time goes", [breakdown()]),
        "convolutions": section("every convolution", layers, **verdicts),
    } | more


def on_gpu(found):
    """The same, a thousand times as fast."""
    found = copy.deepcopy(found)
    for payload in found.values():
        payload["environment"] |= {"device": "Some GPU", "threads": None, "cuda": "13.0"}
        for record in payload["cases"]:
            record["state"] = GPU_STATE
            for timing in record["timings"]:
                timing |= {key: timing[key] / 1e3 for key in ("seconds", "p10", "p90")}
    return found


def put(tree, stem, found):
    text = json.dumps({"schema": results.SCHEMA, "sections": found})
    (tree / "benchmarks" / "results" / f"{stem}.json").write_text(text)


@pytest.fixture
def tree(tmp_path):
    """This tree's texts, and results of a CPU."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name in ("README.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    put(tmp_path, CPU, sections())
    return tmp_path


def written(tree):
    """The texts of README.md and benchmarks/README.md, made anew."""
    report.write(tree)
    return (tree / "README.md").read_text(), (tree / "benchmarks" / "README.md").read_text()


def line_with(text, *parts):
    (found,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return found


def test_the_texts_of_this_tree_say_what_its_files_of_results_say():
    command = [sys.executable, "-m", "benchmarks.report", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_was_written_is_not_stale_and_is_the_same_again(tree):
    texts = written(tree)
    report.refuse_stale(tree)
    pictures = {path: path.read_bytes() for path in (tree / "benchmarks" / "results").glob("*.png")}
    assert {path.name for path in pictures} == {f"{CPU}-{name}.png" for name in ("speedup", "roofline", "iteration")}
    assert written(tree) == texts
    assert {path: path.read_bytes() for path in pictures} == pictures


def test_a_figure_that_changes_in_the_results_is_missed_in_the_texts(tree):
    report.write(tree)
    changed = sections()
    changed["step"]["cases"][0]["timings"][1]["seconds"] = 5.01
    put(tree, CPU, changed)
    with pytest.raises(SystemExit, match=r"README\.md says something else than the files of results: run python -m"):
        report.refuse_stale(tree)


@pytest.mark.parametrize(("name", "figure"), [("README.md", "5.00 s"), ("benchmarks/README.md", "5,000")])
def test_a_figure_that_changes_in_a_text_is_noticed(tree, name, figure):
    report.write(tree)
    text = (tree / name).read_text()
    assert figure in text
    (tree / name).write_text(text.replace(figure, "4", 1))
    with pytest.raises(SystemExit, match=f"{name} says something else"):
        report.refuse_stale(tree)


def test_a_picture_that_is_missing_is_noticed(tree):
    report.write(tree)
    (tree / "benchmarks" / "results" / f"{CPU}-roofline.png").unlink()
    with pytest.raises(SystemExit, match=r"roofline\.png is missing: run python -m benchmarks\.report"):
        report.refuse_stale(tree)


def test_the_speed_of_a_cpu_and_that_a_gpu_was_not_measured_yet(tree):
    readme, _ = written(tree)
    cells = line_with(readme, "training iteration", "some, 2 threads").split("|")[2:-1]
    expected = ["some, 2 threads", "batch 8", "5.00 s, notebook", "3.00 s, tuned eager", "2.00 s (1.80–2.40 s)"]
    assert [cell.strip() for cell in cells] == [*expected, "2.50, 1.50"]
    lines = readme.splitlines()
    below = lines[lines.index(line_with(readme, "training iteration", "some, 2 threads")) + 1]
    assert below.startswith("|  | GPU |")
    assert below.count(NOT_MEASURED) == 4


def test_a_gpu_appears_everywhere_once_it_has_a_file(tree):
    put(tree, GPU, on_gpu(sections()))
    readme, tables = written(tree)
    assert "5.00 ms, notebook | 3.00 ms, tuned eager | 2.00 ms (1.80–2.40 ms)" in line_with(
        readme, "| Some GPU | batch"
    )
    assert "| GPU |" not in readme
    assert line_with(tables, "| section | goal").endswith("| some, 2 threads | Some GPU |")
    assert "SM clock 1,700–1,980 of 1,980 MHz, power 102–650 of 700 W" in tables
    assert "at most 61 °C, reasons for a lower clock: software power cap" in tables
    for name in ("speedup", "roofline", "iteration"):
        assert f"(results/{GPU}-{name}.png)" in tables
        assert (tree / "benchmarks" / "results" / f"{GPU}-{name}.png").exists()


def test_goals_are_met_short_or_not_measured(tree):
    put(tree, GPU, on_gpu(sections(step=section("x", [step()], [Goal("ms", 4.5, 3, at_most=True)]))))
    _, tables = written(tree)
    assert line_with(tables, "| `step` | times as fast as the notebook, clip").endswith("≥ 2 | 2.5 🟢 met |  |")
    assert line_with(tables, "| `step` | ms |").endswith("≤ 3 |  | 4.5 🔴 SHORT |")
    assert line_with(tables, "| `sampling` | videos/s").endswith(f"|  | {NOT_MEASURED} |")


def test_goals_of_a_gpu_are_there_before_it_was_measured(tree):
    _, tables = written(tree)
    assert line_with(tables, "| `step` | ms an iteration without clipping |").endswith(f"|  | {NOT_MEASURED} |")


def test_a_case_has_its_contenders_flags_and_who_is_left_out(tree):
    flagged = step(flags=["other processes took 20 % of the CPUs"], left_out={"tuned, compiled": "no compiler"})
    put(tree, CPU, sections(step=section("an iteration", [flagged])))
    _, tables = written(tree)
    head, cells = (
        [cell.strip() for cell in line_with(tables, *parts).split("|")[1:-1]]
        for parts in (("| case | part |", "notebook"), ("| batch 8 †",))
    )
    assert dict(zip(head, cells, strict=True)) == {
        "case": "batch 8 †",
        "part": WITH_CLIPPING,
        "tgan_fast fp32": "**2,000**",
        "p10–p90": "1,800–2,400",
        "error": "2e-07",
        "notebook": "5,000",
        "tuned eager": "3,000",
        "best rival / own": "1.50 (tuned eager)",
    }
    assert "- † batch 8: other processes took 20 % of the CPUs" in tables
    assert "- tuned, compiled left out: no compiler" in tables
    assert "| cases with a flag | 1 of 5 |" in tables


def test_an_iteration_by_groups(tree):
    _, tables = written(tree)
    assert "| deconvolutions | 1,200 | 60 % | 600 | 50 % |" in tables
    assert "| launch gaps | -100 | -5 % | 0 |  |" in tables


def test_sections_that_nobody_measured_say_so(tree):
    _, tables = written(tree)
    assert f"### startup\n\n{NOT_MEASURED}\n" in tables


def test_without_rivals_and_without_any_results(tree):
    put(tree, CPU, sections(step=section("an iteration", [step(rivals=())])))
    readme, _ = written(tree)
    assert f"| {NOT_MEASURED} | {NOT_MEASURED} | 2.00 s (1.80–2.40 s) | {NOT_MEASURED} |" in readme
    report.refuse_stale(tree)
    (tree / "benchmarks" / "results" / f"{CPU}.json").unlink()
    readme, tables = written(tree)
    assert "|  | GPU |" in readme
    assert line_with(tables, "| section | goal").endswith("| CPU | GPU |")


def test_what_a_section_really_writes_is_told(tree):
    path = tree / "benchmarks" / "results" / f"{CPU}.json"
    run = Run("cpu", smoke=True)
    suite = Suite(run, path)
    record = suite.record(bench_optimizer.SECTION, bench_optimizer.cases_for(run)[0])
    readme, tables = written(tree)
    own = record["timings"][0]
    assert f"{seconds(own['seconds'])} ({spread(own['p10'], own['p90'])})" in line_with(readme, "| step of RMSprop |")
    line = line_with(tables, f"| {record['case']}")
    for timing in record["timings"][:4]:
        assert number(1e3 * timing["seconds"]) in line
    assert percent(own["share_of_floor"]) in line


def test_long_runs_have_their_table_and_picture(tree):
    points = [
        {"seconds": 0.0, "iteration": 0, "loss_discriminator": None, "loss_generator": None, "metric": 9.0},
        {"seconds": 4.0, "iteration": 800, "loss_discriminator": -1.5, "loss_generator": 0.1, "metric": 2.0},
    ]
    curves = [
        {"contender": "tgan_fast", "points": points},
        {"contender": "reference", "points": points[:1]},
    ]
    sooner = {"metric": 2.5, "seconds": 1.5, "reference_seconds": 4.0, "ratio": 2.667}
    payload = {"preset": "tiny", "seconds": 4.0, "floor": 0.25, "contenders": curves, "sooner": sooner}
    payload["environment"] = section("x", [])["environment"]
    put(tree, CPU, sections(**{"convergence fast-vs-reference": payload}))
    (tree / "benchmarks" / "results" / f"{CPU}-convergence-fast-vs-reference.png").write_bytes(b"PNG")
    readme, tables = written(tree)
    assert "tgan_fast is after 1.50 s where the reference is after 4.00 s on some, 2 threads" in readme
    assert "| tgan_fast | 800 | 200 | -1.5 | 2 |" in tables
    assert "| reference | 0 |  |  | 9 |" in tables
    assert f"(results/{CPU}-convergence-fast-vs-reference.png)" in tables


def test_a_roofline_has_the_fastest_of_the_packages_own_ways(tree):
    (device,) = devices_in(tree / "benchmarks" / "results")
    points = {(point.name, point.part): point for point in plots.points_of(device)}
    assert len(points) == 1 + 3 * 2
    assert points["convolution 2", "forward"].rate == pytest.approx(2e10 / 2.0 / 1e12)
    assert points["convolution 2", "input_gradient"].rate == pytest.approx(2e10 / 4.0 / 1e12)
    assert points["convolution 2", "forward"].intensity == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- figure: other --><!-- end -->", "no figure other: choose one of some"),
        ("<!-- figure: some -->", "has no end"),
        ("<!-- end -->", "where the other marker is due"),
        ("<!-- figure: some --><!-- figure: some --><!-- end -->", "where the other marker is due"),
    ],
)
def test_markers_that_make_no_sense_are_refused(text, said):
    with pytest.raises(SystemExit, match=f"error: a text: .*{said}"):
        filled(text, {"some": lambda: "1"}, "a text")


def test_figures_are_filled_into_lines_and_between_lines():
    figures = {"some": lambda: "1", "many": lambda: "2\n3"}
    text = "a <!-- figure: some -->old<!-- end --> b\n<!-- figure: many -->\nold\nold\n<!-- end -->\n"
    expected = "a <!-- figure: some -->1<!-- end --> b\n<!-- figure: many -->\n2\n3\n<!-- end -->\n"
    assert filled(text, figures, "a text") == expected
    assert filled(expected, figures, "a text") == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (9.996, "10.0"), (123.4, "123"), (3840, "3,840"), (-10.04, "-10.0")],
)
def test_numbers_have_three_digits_or_all_in_front_of_the_point(value, text):
    assert number(value) == text


def test_seconds_and_shares():
    assert [seconds(value) for value in (1.92, 0.0205, 0.000151)] == ["1.92 s", "20.5 ms", "151 µs"]
    assert spread(0.9, 1.2) == "0.900–1.20 s"
    assert [percent(share) for share in (0, 0.0001, 0.004, 0.5)] == ["0 %", "< 0.1 %", "0.4 %", "50 %"]
