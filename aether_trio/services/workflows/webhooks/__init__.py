"""Webhooks: signed messages from outside become events."""
