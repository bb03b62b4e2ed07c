"""Kill what runs workflows by chance from a seed, and check each execution.

    python -m chaos workflows --executions 2000 --seed 7     (nox -s chaos -- workflows ...)
    python -m chaos workflows --engine sqlite --seed 7       one gateway on SQLite

How the parts fit: `plays` are the workflows, each with what it must come to, given how its work
ends; `fate` decides how work ends, by the seed; `worker` is the program that works, a separate
process that records each step before it takes it; `stories` starts executions, answers questions,
sends signals and events, and records what was acknowledged; `storms` kills and suspends; `run`
takes it through its phases; `snapshot` copies the tables at the end; `checks` are the invariants,
functions of the copy and the records; `report` shows it.
"""
