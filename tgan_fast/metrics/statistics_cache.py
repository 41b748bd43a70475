"""Statistics of real clips, kept on the disk for the next evaluation."""

import hashlib
import io
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tgan_fast.files import write_atomically


class StatisticsCache:
    """A folder of arrays by what they were computed from.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, key: Mapping[str, Any], names: Collection[str]) -> dict[str, np.ndarray] | None:
        """Return the arrays `names` that were written under an equal key, or None if they are missing or damaged."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except Exception:  # whatever damage leads to
            return None

    def write(self, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a key of plain values.

        Raises:
            OSError: the folder cannot be written to.
        """
        content = io.BytesIO()
        np.savez(content, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(key), content)

    def _path(self, key):
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


def default_cache() -> StatisticsCache | None:
    """Return the cache in the user's folder of caches, or None for a user who has no home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return StatisticsCache(caches / "tgan_fast")
