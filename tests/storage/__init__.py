"""Storage: what is promised of a program, on a file and in memory, in good weather and bad."""
