"""Lets a user window switch to another workspace (reference: core.md section 9).

There is no success reply in the protocol. Unlike in the reference the name is checked, and a switch
that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import IdentityError, Kind, check_token
from aether_trio.services.access import Authorizer
from aether_trio.session.dispatch import NO_ANSWER
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb


class WorkspaceSwitch:
    """Handles users' `switch_workspace`; `moved` is called after every switch."""

    def __init__(self, authorizer: Authorizer, moved: Callable[[Session], None], *, strict: bool = True) -> None:
        self._authorizer = authorizer
        self._moved = moved
        self._strict = strict

    async def handle(self, session: Session, request: pb.SwitchWorkspace) -> Sequence[pb.DownstreamMessage]:
        """Switch a user window's workspace; an empty name leaves it. Raises RequestError."""
        workspace = request.new_workspace_id
        kind = session.identity.kind
        if kind is not Kind.USER:
            raise RequestError(Code.INVALID_PRINCIPAL, f"{kind.with_article} cannot switch its workspace")
        if workspace == session.workspace:
            return NO_ANSWER
        if workspace:
            try:
                check_token(workspace, "workspace", strict=self._strict)
            except IdentityError as error:
                raise RequestError(Code.WORKSPACE_SWITCH_FAILED, str(error)) from None
            if not session.allows_workspace(workspace):
                raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {workspace}")
            decision = await self._authorizer.check_workspace(session, workspace)
            if not decision.allowed:
                raise RequestError(Code.PERMISSION_DENIED, decision.reason)
        assert session.subscriptions is not None
        try:
            await session.subscriptions.switch(workspace)
        except StorageUnavailable as error:
            raise RequestError(Code.WORKSPACE_SWITCH_FAILED, str(error), retryable=True) from None
        session.sender.moved_to(workspace)
        self._moved(session)
        if workspace and not (await self._authorizer.check_workspace(session, workspace)).allowed:
            # Lost while the subscriptions were opened.
            await session.subscriptions.switch("")
            session.sender.moved_to("")
            self._moved(session)
            raise RequestError(Code.PERMISSION_DENIED, f"you may not read workspace {workspace} any more")
        return NO_ANSWER
