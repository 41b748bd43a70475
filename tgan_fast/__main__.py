"""Run a command: `python -m tgan_fast COMMAND`, the same as `tgan-fast COMMAND`."""

from tgan_fast.cli import main

if __name__ == "__main__":
    main()
