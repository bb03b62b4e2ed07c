"""Fuzz targets, one for each decoder that unauthenticated peers reach.

Run them by `nox -s fuzz`, or see `python -m fuzz --help`.

A target is a module with

    check(data)     raises nothing, whatever the bytes; every exception is a finding
    seeds()         inputs to begin with, from the test vectors where there are some

`check` needs no atheris, so tests/fuzz runs every target over its seeds and over mutations of them.
It also asserts what the decoder holds between two reads: a bound that is documented and grows is a
finding before memory is full.
"""
