"""`python -m aether_trio` is the `aether` command, for environments whose scripts are not on PATH."""

from aether_trio.cli import main

if __name__ == "__main__":
    main()
