"""Conformance scenarios through our own client, on its transports.

The numbers are those of the tests of the SDK beside.
"""
