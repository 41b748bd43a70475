"""Channel counts of models that are narrower or wider than the paper's."""


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))
