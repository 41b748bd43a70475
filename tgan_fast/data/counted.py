"""Counts of things in sentences."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 video", "1,200 videos"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
