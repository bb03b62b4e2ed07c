"""Storage: the promises of a program, with and without failures."""
