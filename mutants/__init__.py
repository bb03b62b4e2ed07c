"""Mutants: does a test fail when a line of a module is wrong?

A sample of small changes, from a seed.

    python -m mutants aether_trio/delivery/outbox.py --count 20 --seed 7

How the parts fit: `changes` finds what may be changed in a source, and is pure; `cli` reads
options; `sample` copies the tree, has the tests of the module run once as it is, and then once for
each change, with only those tests that ran the changed lines; `plugin` is what it tells pytest, and
what it hears of it; `report` is the table, survivors first.

The checkout is only read. All that is written is below one temporary folder, which goes when the
run ends.

Written here because mutmut (3.8) wraps each undecorated function, so it knows no module constants
and no properties, and cosmic-ray (8.7) writes into the checkout and removes no statements; neither
draws a sample from a seed.
"""
