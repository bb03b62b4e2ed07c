"""Keeps the limits that are set for single workspaces (model/quotas.py)."""

from aether_trio.services.quotas.records import QUOTA, delete_quotas_of, follow, put_quotas, quotas_of

__all__ = ["QUOTA", "delete_quotas_of", "follow", "put_quotas", "quotas_of"]
