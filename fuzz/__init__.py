"""Fuzz targets, one for each decoder that a peer reaches before anybody knows it: `nox -s fuzz`, or
`python -m fuzz --help`.

A target is a module with

    check(data)     raises nothing, whatever the bytes; an AssertionError is a finding, and so is every other exception
    seeds()         inputs to begin with, from the test vectors where there are some

`check` needs no atheris, so tests/fuzz runs every target over its seeds and over mutations of them.
It also asserts what the decoder holds between two reads: a bound that is documented and grows is a
finding before memory is full.
"""
