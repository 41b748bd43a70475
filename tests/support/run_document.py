"""Run the commands and Python blocks of a document, read from stdin, in turn in this process and the current folder.

A document is a JSON list of commands, each a list of the command's name and its arguments, and of texts of Python.
"""

import json
import sys

from tgan_fast import cli


def run(step):
    print(">>>", step if isinstance(step, str) else " ".join(step), flush=True)
    if isinstance(step, str):
        exec(compile(step, "a block of Python", "exec"), {"__name__": "block"})
        return
    streams = sys.stdout, sys.stderr
    try:
        cli.run(step[0], step[1:])
    except SystemExit as end:
        if end.code != 0:
            raise
    finally:
        sys.stdout, sys.stderr = streams


# Processes that a command starts import this file.
if __name__ == "__main__":
    for each in json.load(sys.stdin):
        run(each)
    print("all done")
