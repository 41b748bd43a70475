"""Long runs: what contenders learn of moving digits in the same wall-clock time."""
