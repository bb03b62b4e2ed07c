"""Run faults by chance on a cluster under load, and check what the clients saw.

    python -m chaos --minutes 5 --seed 7            (nox -s chaos -- --minutes 5 --seed 7)

How the parts fit: `cli` reads options; `run` starts a cluster
(aether_trio.devtools.process_cluster) and takes it through its phases; `plan` makes the list of
faults from the seed, `faults` does them; `load` is the clients, which write what they see into a
`history`, and `rivals` those that fight over one identity; `ledger` has the database itself write
down who held what; `checks` are the invariants, pure functions of a history; `recovery` measures
how soon an identity works again; `report` shows it all.

A seed fixes the faults and when they come. What the processes make of them depends on the machine.
"""
