"""Joins: events that arrive, and what follows when enough have."""
