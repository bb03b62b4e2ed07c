"""Clients of an Aether gateway, for trio and asyncio."""
