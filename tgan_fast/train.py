"""Train TGAN: `python -m tgan_fast.train`, the same as `python -m tgan_fast train`.

To run, not to import: `tgan_fast.train` is the function of `tgan_fast.training.loop`.
"""

import sys

from tgan_fast.cli import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
