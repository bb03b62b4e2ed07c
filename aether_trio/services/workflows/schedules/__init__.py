"""Schedules: when they fire, and what that starts."""
