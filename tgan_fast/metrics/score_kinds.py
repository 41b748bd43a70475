"""The kinds of scores: their names, the network that computes their features, and whether higher is better."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Metric = Literal["is", "fid", "fvd", "frame-fid"]


class ScoreKind(NamedTuple):
    """Kind of score.

    Attributes:
        metric: Name on command lines.
        name: Name in files.
        title: Name in prose.
        network: Network that computes features of the videos.
        best: Function that returns the best of several scores, `max` or `min`.
    """

    metric: Metric
    name: str
    title: str
    network: Literal["classifier", "i3d", "inception"]
    best: Callable[..., Any]

    @property
    def heading(self) -> str:
        """Title with a capital letter."""
        return self.title[0].upper() + self.title[1:]

    @property
    def direction(self) -> str:
        """Direction of better scores, in words."""
        return "the higher the better" if self.best is max else "the lower the better"

    def is_better(self, score: float, than: float) -> bool:
        """Return whether one score is better than another."""
        return score != than and self.best(score, than) == score


SCORE_KINDS = (
    ScoreKind("is", "inception_score", "inception score", "classifier", max),
    ScoreKind("fid", "frechet_distance", "Fréchet distance", "classifier", min),
    ScoreKind("fvd", "frechet_video_distance", "Fréchet video distance", "i3d", min),
    ScoreKind("frame-fid", "frame_frechet_distance", "frame Fréchet distance", "inception", min),
)

KIND_OF: dict[Metric, ScoreKind] = {kind.metric: kind for kind in SCORE_KINDS}
