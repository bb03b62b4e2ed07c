"""Workflows: who the engine is, and how requests to it are answered."""
