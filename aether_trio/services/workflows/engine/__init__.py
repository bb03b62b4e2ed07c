"""The embedded engine, and the ways of operations to it and to external ones."""
