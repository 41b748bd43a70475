"""What the benchmarks share: timing in turns, the copy ceiling, a description of the machine, files of results."""

import functools
import gc
import importlib
import json
import math
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tgan_fast.commit import commit_of
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.precision import Precision, arithmetic, compute_dtype, resolve_precision

SCHEMA = 1  # of the files of results
WITHOUT_GRAPH = "events without a CUDA graph"  # the beginning of such a `Timing.method`
NOT_MEASURED = "not measured yet"
RESULTS = Path(__file__).with_name("results")
ROUNDS = {"cpu": 10, "cuda": 30}  # of `measure`, by default

_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_CPU_CACHE_BYTES = 32 << 20  # a common size of the last level, which PyTorch does not tell
# Inputs so small that this many fit the cache are read from the cache in use, too.
_MOST_INPUT_SETS = 256
# NVML's reasons for a lower clock, by their bits.
_THROTTLE_REASONS = (
    "idle",
    "application clocks",
    "software power cap",
    "hardware slowdown",
    "sync boost",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "hardware power brake",
    "display clocks",
)


class Timing(NamedTuple):
    """Seconds a call over all rounds, and how they were measured."""

    median: float
    p10: float
    p90: float
    method: str

    def record(self) -> dict:
        """What goes into the file of results."""
        times = {"seconds": self.median, "p10": self.p10, "p90": self.p90}
        return {**{name: rounded(seconds) for name, seconds in times.items()}, "method": self.method}


class Goal(NamedTuple):
    """A bound of what is measured."""

    text: str
    measured: float | None
    bound: float
    at_most: bool

    @property
    def verdict(self) -> str:
        """Whether it is met; a goal without a measurement is neither met nor missed."""
        if self.measured is None:
            return NOT_MEASURED
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "met" if met else "SHORT"

    def record(self) -> dict:
        """What goes into the file of results."""
        return {**self._asdict(), "verdict": self.verdict}

    def __str__(self):
        measured = "" if self.measured is None else f"{self.measured}: "
        return f"goal {'≤' if self.at_most else '≥'} {self.bound} {self.text}: {measured}{self.verdict}"


def again(name) -> str:
    """The name under which `measure` times the first contender a second time."""
    return f"{name} again"


def measure(
    contenders: Mapping[str, Callable],
    input_sets: Sequence,
    device: str,
    rounds: int | Mapping[str, int] | None = None,
    *,
    prepare: Callable | None = None,
    uncaptured: Mapping[str, str] | None = None,
) -> dict[str, Timing]:
    """Time contenders in turns, so that a machine whose speed drifts slows down all of them.

    In each round, in a random order, every contender runs once on each input set. On a GPU that is the replay of a
    CUDA graph, timed by events; a contender that cannot be captured runs without one, and its `Timing.method` says why.

    Args:
        contenders: functions of an input set. What they return is dropped.
        input_sets: `input_set_count` tells how many they should be. For contenders that run backward on a GPU, forward
            must have run within `side_stream`.
        device: "cpu" or "cuda".
        rounds: `ROUNDS` by default; for each contender its own where slow ones shall take part in fewer.
        prepare: called with every input set before a contender's turn, outside of what is timed: restores what
            contenders change.
        uncaptured: contenders that run without a CUDA graph, and why. Name those that cannot be captured: PyTorch
            captures nothing reliably after an attempt that failed.

    Returns:
        A timing for each contender, and one for the first under the name `again(first)`: the two differ by chance.
    """
    if not isinstance(rounds, Mapping):
        rounds = dict.fromkeys(contenders, rounds or ROUNDS[device])
    first = next(iter(contenders))
    contenders, rounds, uncaptured = (
        {**options, again(first): options[first]} if first in options else options
        for options in (contenders, rounds, uncaptured or {})
    )

    def prepare_all():
        for inputs in input_sets if prepare else ():
            prepare(inputs)

    if device == "cuda":
        return _time_on_gpu(contenders, input_sets, rounds, prepare_all, uncaptured)
    return _time_on_cpu(contenders, input_sets, rounds, prepare_all)


def input_set_count(nbytes: int, device: str) -> int:
    """How many input sets of `nbytes` together exceed twice the last cache; at least two."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else _CPU_CACHE_BYTES
    return min(_MOST_INPUT_SETS, max(2, math.ceil(2 * cache / nbytes)))


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """On a GPU, work on the stream where `measure` captures.

    The default stream cannot be captured, and backward runs on the stream of its forward.
    """
    if device == "cpu":
        yield
        return
    outer, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)


def copy_bandwidth(device: str) -> float:
    """Bytes read plus written per second when a large tensor is copied: the ceiling of what moves bytes."""
    source = torch.rand(_COPY_BYTES[device] // 4, device=device)
    timing = measure({"copy": torch.empty_like(source).copy_}, [source], device)["copy"]
    return 2 * source.nbytes / timing.median


def matrix_product_rate(device: str, precision: Precision) -> float:
    """Operations per second of a large square matrix product of random numbers: the ceiling of convolutions."""
    side = _MATRIX_SIDE[device]
    dtype = compute_dtype(precision, torch.float32)
    left, right = (torch.rand(side, side, device=device).sub_(0.5).to(dtype) for _ in range(2))

    def product(_):
        with arithmetic(precision):
            return left @ right

    return 2 * side**3 / measure({"product": product}, [None], device)["product"].median


def precisions_for(device: str) -> list[Precision]:
    """All that the device has, its default first; of a CPU the default alone."""
    found = []
    for name in ("auto", "bf16", "tf32", "fp32") if device == "cuda" else ("auto",):
        try:
            found.append(resolve_precision(name, torch.device(device)))
        except InputError:
            continue
    return list(dict.fromkeys(found))


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory in use on the GPU while `run` runs, on top of what is in use before."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def describe(device: str) -> dict:
    """The machine and its state at this moment, the software, and the command."""
    return {
        "device": device_name(device),
        "gpu_state": _gpu_state() if device == "cuda" else None,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "commit": _commit(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def device_name(device: str) -> str:
    """The model of the GPU or of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.M) if information.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def results_file(device: str) -> Path:
    """Where the results of this machine's device are, or will be."""
    name = device_name(device) if device == "cuda" else f"cpu {device_name(device)} {torch.get_num_threads()} threads"
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def write_results(section: str, payload: dict, device: str) -> Path:
    """Put a section, with `describe(device)` in it, into the device's file of results; returns the file."""
    path = results_file(device)
    results = json.loads(path.read_text()) if path.exists() else {"schema": SCHEMA, "sections": {}}
    if results["schema"] != SCHEMA:
        raise SystemExit(f"error: {path} has the schema {results['schema']}, not {SCHEMA}: move it away")
    results["sections"][section] = {"environment": describe(device), **payload}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, _json(results).encode())
    return path


def record_cases(
    section: str,
    cases: Iterable,
    run: Callable[[Any], dict],
    show: Callable[[Any, dict], None],
    device: str,
    *,
    write: bool,
    **common,
) -> None:
    """Run case after case, show each one's record, and write all of them so far: what breaks off leaves the others.

    Args:
        section: of the file of results; it gets `cases`, the records.
        run: makes a case's record.
        show: prints it.
        write: otherwise nothing is written.
        common: what else the section holds.
    """
    records = []
    for case in cases:
        records.append(run(case))
        show(case, records[-1])
        if write:
            path = write_results(section, {**common, "cases": records}, device)
    if write:
        print(f"\nwritten to {path}")


def rounded(number: float) -> float:
    """To four digits, more than a measurement holds."""
    return float(f"{number:.4g}")


def first_line(error: Exception) -> str:
    """What an error says, in 200 characters at most."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _time_on_cpu(contenders, input_sets, rounds, prepare_all):
    seconds = {name: [] for name in contenders}
    for call in contenders.values():
        prepare_all()
        call(input_sets[0])
    for name in _turns(rounds):
        prepare_all()
        begin = time.perf_counter()
        for inputs in input_sets:
            contenders[name](inputs)
        seconds[name].append((time.perf_counter() - begin) / len(input_sets))
    return {name: _timing(column, "perf_counter") for name, column in seconds.items()}


def _time_on_gpu(contenders, input_sets, rounds, prepare_all, uncaptured):
    with side_stream("cuda"):
        # One pool for all: their outputs are dropped, so that replays may overwrite each other's.
        pool = torch.cuda.graph_pool_handle()
        runs = {}
        for name, call in contenders.items():
            prepare_all()
            run = functools.partial(_call_on_each, call, input_sets)
            if name in uncaptured:
                runs[name] = run, f"{WITHOUT_GRAPH}: {uncaptured[name]}"
            else:
                runs[name] = _captured(run, pool)
        # Not timed, and not waited for: while the GPU is busy with these, the timed ones queue up without gaps.
        for run, _ in runs.values():
            prepare_all()
            run()
        events = {name: [] for name in runs}
        for name in _turns(rounds):
            prepare_all()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            runs[name][0]()
            end.record()
            events[name].append((begin, end))
        torch.cuda.synchronize()
    return {
        name: _timing([begin.elapsed_time(end) / 1e3 / len(input_sets) for begin, end in events[name]], method)
        for name, (_, method) in runs.items()
    }


def _turns(rounds):
    """Every name as often as it has rounds, spread evenly over all rounds.

    The order changes, since a contender may find the cache as the one before left it.
    """
    order, most = random.Random(0), max(rounds.values())
    for index in range(most):
        names = [name for name, count in rounds.items() if index * count % most < count]
        yield from order.sample(names, len(names))


def _call_on_each(call, input_sets):
    """All outputs live until the last call: none is written where another one still is in the cache."""
    return [call(inputs) for inputs in input_sets]


def _captured(run, pool):
    """The replay of a graph of `run`, or `run` itself where it cannot be captured, and the method's name."""
    run()  # compiles, loads and allocates what a capture must not
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
            run()
    except RuntimeError as error:
        return run, f"{WITHOUT_GRAPH}: {first_line(error)}"
    return graph.replay, "replays of a CUDA graph"


@functools.cache
def _stream():
    return torch.cuda.Stream()


def _timing(seconds, method):
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Timing(statistics.median(seconds), tenths[0], tenths[-1], method)


@functools.cache
def _commit():
    """As it was before the first file of results was written."""
    return commit_of(Path(__file__).resolve().parent.parent)


def _gpu_state():
    """Clocks, power, temperature and why the clocks are not higher, from NVML; None without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties('cuda').uuid}")
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
        return {
            "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "sm_clock_limit_mhz": pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
            "temperature_c": pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": [reason for bit, reason in enumerate(_THROTTLE_REASONS) if reasons >> bit & 1],
        }
    except pynvml.NVMLError:
        return None


def _version(module):
    try:
        return importlib.import_module(module).__version__
    except ImportError:
        return None


def _json(value):
    """JSON with each innermost object and list on a line of its own."""
    text = json.dumps(value, indent=1)
    innermost = r"([\[{])\n\s*([^\[\]{}]*?)\n\s*([\]}])"
    return re.sub(innermost, lambda m: m[1] + re.sub(r"\n\s*", " ", m[2]) + m[3], text) + "\n"
