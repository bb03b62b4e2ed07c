"""Makes, lists and ends API tokens without a gateway."""

from __future__ import annotations

import getpass
import secrets
import uuid
from functools import partial

from aether_trio.gateway.offline import OfflineAccess
from aether_trio.model.api_tokens import OPERATOR, ApiToken, new_token_text
from aether_trio.services.tokens import HmacKeys, rows
from aether_trio.services.tokens.service import TokenMaker, end_token, make_token, wanted_token
from aether_trio.wire.pb import aether_pb2 as pb


def operator() -> TokenMaker:
    """Return the person at this machine, as the maker of tokens and in the audit."""
    return TokenMaker(OPERATOR, getpass.getuser(), source="offline")


async def make_offline(access: OfflineAccess, keys: HmacKeys, wanted: pb.TokenCreateRequest) -> tuple[ApiToken, str]:
    """Make a token; return it with its text.

    Raises RequestError, StorageUnavailable, and LookupError without a key.
    """
    key_id = keys.newest
    if key_id is None:
        raise LookupError("auth.token_hmac_keys is empty; `aether init` makes a key")
    maker = operator()
    token = wanted_token(wanted, str(uuid.uuid4()), maker, access.clock.now_ms())
    text = new_token_text(secrets.token_bytes)
    token_hash = keys.hash(key_id, text)
    row = rows.TokenRow(token, token_hash, key_id, keys.seal(key_id, token_hash, token))
    await access.changes.commit(partial(make_token, row=row, maker=maker))
    return token, text


async def list_offline(access: OfflineAccess, *, revoked: bool, limit: int, offset: int) -> tuple[list[ApiToken], int]:
    """Return (a page of tokens, how many there are). Raises StorageUnavailable."""
    return await access.database.read(partial(rows.page, revoked=revoked, limit=limit, offset=offset))


async def find_offline(access: OfflineAccess, token_id: str) -> ApiToken | None:
    """Return a token by its id, or None. Raises StorageUnavailable."""
    row = await access.database.read(partial(rows.by_id, token_id))
    return None if row is None else row.token


async def end_offline(access: OfflineAccess, token_id: str, *, delete: bool) -> bool:
    """Revoke or delete a token; return whether there is one."""
    done = await access.changes.commit(partial(end_token, token_id=token_id, maker=operator(), delete=delete))
    return done.result is not None
