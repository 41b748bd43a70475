"""Train TGAN: `python -m tgan_fast.train`, the same as `python -m tgan_fast train`.

When imported, this module replaces itself with the function `train`, because both have the same name in the package.
"""

import sys

if __name__ == "__main__":
    from tgan_fast.cli import run

    run("train", sys.argv[1:])
elif __name__ == "tgan_fast.train":
    from tgan_fast.training.loop import train

    sys.modules[__name__] = train  # type: ignore[assignment]
