"""The tables of each logical database, one module each, as portable DDL (see migrations.py)."""
