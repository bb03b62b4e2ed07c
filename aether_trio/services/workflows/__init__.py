"""Workflows: what follows from events and time, in the transactions of tasks.

    documents ◀─ stored ◀─ events, requests ◀─ actions, flow ◀─ executions ◀─ machines, joins,
        schedules ◀─ rules, webhooks ◀─ operations ◀─ engine

An arrow points at what is imported; no two packages import each other.
"""
