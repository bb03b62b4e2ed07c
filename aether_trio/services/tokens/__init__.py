"""API tokens in the database, made, listed, revoked, and found at connect."""

from aether_trio.services.tokens.keys import HmacKeys, read_hmac_keys
from aether_trio.services.tokens.service import TOKEN, TokenService
from aether_trio.services.tokens.store import TokenStore

__all__ = ["TOKEN", "HmacKeys", "TokenService", "TokenStore", "read_hmac_keys"]
