"""Chaos for access: gives and takes rights while clients use them and nodes break.

    Administrators ── give, take, each in turn ──▶ nodes ◀── try, again and again ── holders
                                    faults ───────▶ nodes

The invariants (checks.py) compare what holders were allowed with what had been answered to the
administrators, and the changes in the tables with their audit rows.
"""
