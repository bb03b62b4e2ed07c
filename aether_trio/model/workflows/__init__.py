"""Workflows: definitions, the interpreter of executions, joins and state machines.

No I/O, no clock, no randomness: a happening goes in, the next state and commands come out. The
tables and transactions are those of services/workflows.
"""
