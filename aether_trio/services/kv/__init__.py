"""The key-value store: 14 operations on 8 scopes (reference: core.md section 6)."""

from aether_trio.services.kv.service import KvHandler, KvService

__all__ = ["KvHandler", "KvService"]
