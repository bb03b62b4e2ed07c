"""Run the `aether` command as `python -m aether_trio`, when it is not on PATH."""

from aether_trio.cli import main

if __name__ == "__main__":
    main()
