"""Fuzz targets: `nox -s fuzz`."""
