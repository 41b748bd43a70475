"""Tables, pictures and figures from the files of results.

python -m benchmarks.report            # makes them anew
python -m benchmarks.report --check    # tells whether they are what the files of results say
"""

from typing import Annotated

import tyro

from benchmarks import report


def main(check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> None:
    """Make README.md, benchmarks/README.md and the pictures anew from the files of results.

    Args:
        check: only tell whether they are what the files of results say.
    """
    report.refuse_stale() if check else report.write()


if __name__ == "__main__":
    tyro.cli(main)
