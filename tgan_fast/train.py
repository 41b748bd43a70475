"""Train TGAN: `python -m tgan_fast.train`, the same as `python -m tgan_fast train`.

Imported, it is the function `train`, since a package has one thing of each name.
"""

import sys

if __name__ == "__main__":
    from tgan_fast.cli import run

    run("train", sys.argv[1:])
elif __name__ == "tgan_fast.train":
    from tgan_fast.training.loop import train

    sys.modules[__name__] = train  # type: ignore[assignment]
