"""Kills, and what becomes of tasks: workers and gateways end with SIGKILL by chance from a seed,
and every task must end once.

    python -m chaos --tasks 5000 --seed 7             (nox -s chaos -- --tasks 5000 --seed 7)
    python -m chaos --tasks 5000 --seed 7 --sqlite    one gateway on SQLite

How the parts fit: `place` starts the gateways (a cluster on PostgreSQL, or one on SQLite); `worker`
is the program that works, as a process of its own that writes down what it does before it does it;
`run` makes the tasks, keeps the workers alive and kills; `history` reads the tables at the end;
`checks` are the invariants, pure functions of what was read; `report` shows it.
"""
