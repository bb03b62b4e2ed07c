"""Executions of graphs and runs of durable functions: rows, history and moves."""
