"""The cases that README.md and the pictures show: the package against eager PyTorch and against its best rival."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import bench_singular_value_clip, bench_step
from benchmarks.contenders import NOTEBOOK
from benchmarks.report.measured import Device, best_rival, parts_of


class Headline(NamedTuple):
    """A case and part."""

    title: str
    section: str
    case: str  # how its name begins; the first one counts
    part: str | None
    eager: str  # how users write it in PyTorch


class Comparison(NamedTuple):
    """What was measured of a headline: rows of the case's timings."""

    headline: Headline
    record: dict
    own: dict
    eager: dict | None
    rival: dict | None  # the fastest
    short: bool  # a speed-up that is a goal of the section is missed

    def times(self, row: dict) -> float:
        """As fast as a row."""
        return row["seconds"] / self.own["seconds"]


STEP = Headline("training iteration, clipping in every fifth", "step", "", bench_step.WITH_CLIPPING, NOTEBOOK)
SAMPLING = Headline("sampling", "sampling", "", None, NOTEBOOK)
CLIPPING = Headline(
    "singular value clipping of the discriminator",
    "singular_value_clip",
    bench_singular_value_clip.FIVE,
    bench_singular_value_clip.CALL,
    "svd",
)
RMSPROP, ADAM = (
    Headline(f"step of {name}", "optimizer", name.lower(), None, "torch for-loop") for name in ("RMSprop", "Adam")
)
NORM_FORWARD, NORM_BACKWARD = (
    Headline(f"batch norm + ReLU, {part}", "batch_norm_act", "image", part, "eager") for part in ("forward", "backward")
)
HEADLINES = STEP, SAMPLING, CLIPPING, RMSPROP, NORM_FORWARD, NORM_BACKWARD


def comparison_of(headline: Headline, device: Device) -> Comparison | None:
    """None if it was not measured."""
    for record in device.cases(headline.section):
        rows = parts_of(record).get(headline.part)
        if record["case"].startswith(headline.case) and rows:
            eager = next((row for row in rows if row["contender"] == headline.eager), None)
            return Comparison(
                headline, record, rows[0], eager, best_rival(record, rows), _falls_short(headline, device)
            )
    return None


def comparisons_of(device: Device) -> Iterator[Comparison]:
    """Of all headlines that were measured."""
    for headline in HEADLINES:
        comparison = comparison_of(headline, device)
        if comparison is not None:
            yield comparison


def _falls_short(headline, device):
    goals = device.sections[headline.section]["goals"]
    return any(goal["verdict"] == "SHORT" for goal in goals if "times as fast" in goal["text"])
