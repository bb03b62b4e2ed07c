"""Checks the credentials of connecting clients, and slows down guessing."""
