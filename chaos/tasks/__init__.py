"""Kill workers and gateways by chance from a seed, and check that every task ends.

Every task must end once.

    python -m chaos --tasks 5000 --seed 7             (nox -s chaos -- --tasks 5000 --seed 7)
    python -m chaos --tasks 5000 --seed 7 --sqlite    one gateway on SQLite

How the parts fit: `place` starts the gateways (a cluster on PostgreSQL, or one on SQLite); `worker`
is the program that works, a separate process that records each step before it takes it;
`run` makes the tasks, keeps the workers alive and kills; `history` reads the tables at the end;
`checks` are the invariants, pure functions of what was read; `report` shows it.
"""
