"""Documents of workflows: read, checked and compiled, and the values in them."""
