"""Train TGAN: `python -m tgan_fast.train`, the same as `python -m tgan_fast train`."""

import sys

from tgan_fast.cli import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
