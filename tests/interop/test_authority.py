"""Scenarios 103 to 105: grants and authority requests, with the published SDK."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, agent_init, answered, declined, eventually, in_asyncio, raw_stream

READ, READWRITE = 10, 20
EXCHANGE = "capability/exchange_authority_grants"


def times(lasts_s: int = 600, window_s: int = 1200) -> dict[str, int]:
    now_s = int(time.time())
    return {"expires_at": now_s + lasts_s, "renewable_until": now_s + window_s}


def principal(kind: str, name: str) -> pb.PrincipalRef:
    return pb.PrincipalRef(principal_type=kind, principal_id=name)


def on_behalf(user_id: str, grant_id: str) -> pb.AuthorizationContext:
    return pb.AuthorizationContext(authority_mode="on_behalf_of", subject=principal("user", user_id), grant_id=grant_id)


async def allow(admin: Peer, kind: str, name: str, resource_type: str, resource_id: str, level: int) -> None:
    granted = await admin.client.acl_grant(kind, name, resource_type, resource_id, level, "test", timeout=LIMIT_S)
    answered(granted, f"acl_grant {resource_id}")


async def delegated(world: World, user: Peer, agent: Peer, **terms: Any) -> str:
    """A grant by which the user lets the agent act for him."""
    ends = times()  # for both, as the second may pass between them
    root = answered(
        await user.client.exchange_authority_grant(
            max_access_level=READWRITE, may_delegate=True, remaining_hops=3, timeout=LIMIT_S, **ends
        ),
        "exchange",
    )
    child = await user.client.derive_authority_grant(
        root.grant.grant_id,
        "agent",
        agent.topic,
        **{
            "max_access_level": READWRITE,
            "audience_type": "agent",
            "audience_id": agent.topic,
            "may_delegate": True,
            "remaining_hops": 2,
            "timeout": LIMIT_S,
            **ends,
            **terms,
        },
    )
    return str(answered(child, "derive").grant.grant_id)


async def send_for(
    target: str, world: World, spec: str, to: str, payload: bytes, context: pb.AuthorizationContext
) -> list[str]:
    """Send on behalf of a user, which the SDK's send cannot; codes of refusals."""
    async with raw_stream(target.split(",", maxsplit=1)[0], **agent_init(world.ws, world.impl, spec)) as stream:
        await stream.expect("connection_ack")
        message = pb.SendMessage(target_topic=to, payload=payload, authorization=context)
        await stream.send(send=message)
        await stream.send(
            checkpoint_op=pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, key="none", request_id="end")
        )
        codes = []
        while (message := await stream.read()).WhichOneof("payload") != "checkpoint":
            if message.WhichOneof("payload") == "error":
                codes.append(message.error.code)
        return codes


@in_asyncio
async def test_103_a_a_user_exchanges_and_a_service_does_from_his_session(any_target: str) -> None:
    async with World(any_target) as world:
        user, service, admin = await world.open(world.user("w1"), world.service("s1"), world.orchestrator())
        own = answered(
            await user.client.exchange_authority_grant(max_access_level=READ, timeout=LIMIT_S, **times()), "exchange"
        ).grant
        assert (own.subject.principal_id, own.delegate.principal_id) == (world.uid, world.uid)
        assert own.metadata["exchange_mode"] == "self"
        trusted = {"source_session_id": user.session_id, "max_access_level": READ, "timeout": LIMIT_S, **times()}
        declined(await service.client.exchange_authority_grant(**trusted), "exchange without the capability")
        await allow(admin, "service", service.topic, "capability", f"{EXCHANGE}/_no_workspace/{world.uid}", 30)
        grant = answered(await service.client.exchange_authority_grant(**trusted), "exchange").grant
        assert (grant.subject.principal_id, grant.delegate.principal_id) == (world.uid, service.topic)
        assert grant.valid_while_audience_active


@in_asyncio
async def test_103_a_scope_and_level_of_a_grant_are_enforced(any_target: str) -> None:
    async with World(any_target) as world:
        user, agent = await world.open(world.user("w1"), world.agent("a"))
        for refused in ({"max_access_level": 0}, {"expires_at": 0}, {"workspace_scope": ["["]}):
            terms = {"max_access_level": READ, "timeout": LIMIT_S, **times(), **refused}
            declined(await user.client.exchange_authority_grant(**terms), f"exchange with {refused}")
        narrow = await delegated(world, user, agent, workspace_scope=[world.ws], max_access_level=READ)
        for wider in ({"workspace_scope": []}, {"max_access_level": READWRITE}, times(5000, 5000)):
            terms = {
                "max_access_level": READ,
                "workspace_scope": [world.ws],
                "audience_type": "agent",
                "audience_id": agent.topic,
                "timeout": LIMIT_S,
                **wider,
            }
            response = await agent.client.derive_authority_grant(narrow, "agent", agent.topic, **terms)
            assert "broaden" in declined(response, f"derive with {wider}").error


@in_asyncio
async def test_103_r_a_message_on_behalf_says_for_whom_and_ends_with_the_grant(any_target: str) -> None:
    async with World(any_target) as world:
        user, receiver = await world.open(world.user("w1"), world.agent("b"))
        sender = world.agent("a")
        grant_id = await delegated(world, user, sender)
        context = on_behalf(world.uid, grant_id)
        forged = on_behalf("someone-else", grant_id)
        assert await send_for(any_target, world, "a", receiver.topic, b"mine", context) == []
        arrived = await receiver.message(b"mine")
        assert arrived.source_topic == sender.topic
        assert await send_for(any_target, world, "a", receiver.topic, b"forged", forged) == ["ERR_PERMISSION_DENIED"]
        assert await send_for(any_target, world, "c", receiver.topic, b"stolen", context) == ["ERR_PERMISSION_DENIED"]
        answered(await user.client.revoke_authority_grant(grant_id, timeout=LIMIT_S), "revoke")
        assert await send_for(any_target, world, "a", receiver.topic, b"late", context) == ["ERR_PERMISSION_DENIED"]
        await receiver.only(user)


@in_asyncio
async def test_103_a_a_grant_expires(any_target: str) -> None:
    async with World(any_target) as world:
        user, agent = await world.open(world.user("w1"), world.agent("a"))
        grant_id = await delegated(world, user, agent, **times(2, 2))

        async def resolved() -> Any:
            return await agent.client.resolve_authority(grant_id, "user", world.uid, timeout=LIMIT_S)

        await eventually(resolved, lambda answer: not answer.ok and "expired" in answer.error, "the end of a grant")


@in_asyncio
async def test_104_a_derive_for_target_renew_list_and_batch(any_target: str) -> None:
    async with World(any_target) as world:
        user, agent, other = await world.open(world.user("w1"), world.agent("a"), world.agent("b"))
        parent = await delegated(world, user, agent)
        derived = [
            answered(
                await agent.client.derive_authority_grant_for_target(
                    parent, "agent", other.topic, max_access_level=READ, timeout=LIMIT_S
                ),
                "derive_for_target",
            ).grant
            for _ in range(2)
        ]
        assert derived[0].grant_id == derived[1].grant_id
        renewed = answered(
            await agent.client.renew_authority_grant(parent, extend_seconds=10_000, timeout=LIMIT_S), "renew"
        ).grant
        root = answered(await user.client.get_authority_grant(renewed.root_grant_id, timeout=LIMIT_S), "get").grant
        assert renewed.expires_at == root.expires_at  # never beyond what is above it
        mine = answered(await agent.client.list_my_authority_grants(timeout=LIMIT_S), "list_my")
        assert [one.grant_id for one in mine.grants] == [parent]
        on_me = answered(await user.client.list_authority_grants_on_me(timeout=LIMIT_S), "list_on_me")
        assert on_me.total == 3
        batch = [pb.AuthorityGrantExchangeRequest(max_access_level=READ, **times()) for _ in range(2)]
        made = answered(await user.client.batch_exchange_authority_grants(batch, timeout=LIMIT_S), "batch")
        assert len({one.grant_id for one in made.grants}) == 2


@in_asyncio
async def test_104_a_a_revocation_cascades_and_is_pushed(any_target: str) -> None:
    async with World(any_target) as world:
        user, agent, other = await world.open(world.user("w1"), world.agent("a"), world.agent("b"))
        pushed: dict[str, asyncio.Queue[Any]] = {}
        for peer in (agent, other):
            pushed[peer.topic] = asyncio.Queue()
            peer.client.on_authority_grant_revocation = pushed[peer.topic].put_nowait
        cache = other.client.make_authority_cache()
        parent = await delegated(world, user, agent)
        child = answered(
            await agent.client.derive_authority_grant_for_target(
                parent, "agent", other.topic, max_access_level=READ, timeout=LIMIT_S
            ),
            "derive_for_target",
        ).grant.grant_id
        assert (await other.client.resolve_authority(child, "user", world.uid, timeout=LIMIT_S)).ok
        answered(await user.client.revoke_authority_grant(parent, timeout=LIMIT_S), "revoke")
        for peer, grant_id, cascade in ((agent, parent, False), (other, child, True)):
            told = await peer.take(box=pushed[peer.topic])
            assert (told.grant_id, told.cascade) == (grant_id, cascade)
        resolved = await other.client.resolve_authority(child, "user", world.uid, timeout=LIMIT_S)
        assert (resolved.ok, "revoked" in resolved.error) == (False, True)
        assert cache is not None


@in_asyncio
async def test_104_a_others_resolve_and_ask_with_the_capability_only(any_target: str) -> None:
    async with World(any_target) as world:
        user, agent, service, admin = await world.open(
            world.user("w1"), world.agent("a"), world.service("s1"), world.orchestrator()
        )
        grant_id = await delegated(world, user, agent)
        asked = {"actor_type": "agent", "actor_id": agent.topic, "timeout": LIMIT_S}
        refused = await service.client.resolve_authority(grant_id, "user", world.uid, **asked)
        assert (refused.ok, refused.error, refused.HasField("authority")) == (False, "not authorized", False)
        await allow(admin, "service", service.topic, "capability", "capability/resolve_authority", READ)
        resolved = await service.client.resolve_authority(grant_id, "user", world.uid, **asked)
        assert resolved.ok, resolved.error
        assert resolved.authority.grant.subject_id == world.uid
        assert resolved.authority.actor.principal_id == agent.topic


async def request_op(stream: Any, number: str, **fields: Any) -> Any:
    """The response, which the SDK's clients never read."""
    await stream.send(authority_request_op=pb.AuthorityRequestOperation(client_request_id=number, **fields))
    while True:
        message = await stream.read()
        if message.WhichOneof("payload") == "authority_request_response":
            response = message.authority_request_response
            assert response.client_request_id == number
            return response


Op = pb.AuthorityRequestOperation


@in_asyncio
async def test_105_r_requests_are_asked_listed_narrowed_and_decided(any_target: str) -> None:
    async with World(any_target) as world:
        (admin,) = await world.open(world.orchestrator())
        capability = f"capability/approve/{world.run}"
        await allow(admin, "user", world.uid, "capability", capability, 30)
        wish = pb.CreateAuthorityRequestPayload(
            desired_workspace_scope=[world.ws, "other"],
            requested_access_level=pb.ACCESS_LEVEL_MANAGE,
            requested_duration_seconds=100_000,
            routing_target=pb.AuthorityRequestRoutingTarget(capability=capability),
            reason="to deploy",
        )
        user_init = {"user": pb.UserIdentity(user_id=world.uid, window_id="w1")}
        async with (
            raw_stream(any_target.rsplit(",", maxsplit=1)[-1], **user_init) as window,
            raw_stream(any_target.split(",", maxsplit=1)[0], **agent_init(world.ws, world.impl, "a")) as agent,
        ):
            await window.expect("connection_ack")
            await agent.expect("connection_ack")
            created = answered(await request_op(agent, "c1", op=Op.CREATE, create=wish), "create").request
            assert created.requested_duration_seconds == 3600
            told = (await window.expect("authority_request_event")).request
            assert told == created
            wanted = pb.AuthorityRequestListFilter(matching_capabilities=[capability])
            listed = answered(await request_op(window, "l1", op=Op.LIST_PENDING, list_filter=wanted), "list")
            assert [one.request_id for one in listed.requests] == [created.request_id]
            narrowed = pb.ResolveAuthorityRequestPayload(
                decision=pb.ResolveAuthorityRequestPayload.APPROVE, granted_workspace_scope=[world.ws]
            )
            approved = answered(
                await request_op(window, "r1", op=Op.RESOLVE, request_id=created.request_id, resolve=narrowed),
                "approve",
            ).request
            assert approved.status == pb.AUTHORITY_REQUEST_STATUS_APPROVED
            again = await request_op(window, "r2", op=Op.RESOLVE, request_id=created.request_id, resolve=narrowed)
            assert declined(again, "a second approval").error == "authority request already resolved"
            for number, end in enumerate(("deny", "cancel")):
                other = answered(await request_op(agent, f"c{number}x", op=Op.CREATE, create=wish), "create").request
                if end == "deny":
                    denial = pb.ResolveAuthorityRequestPayload(decision=pb.ResolveAuthorityRequestPayload.DENY)
                    ended = await request_op(window, "d", op=Op.RESOLVE, request_id=other.request_id, resolve=denial)
                else:
                    ended = await request_op(agent, "d", op=Op.CANCEL, request_id=other.request_id, reason="x")
                answered(ended, end)
        agent_ = await world.agent("a").open()
        grant = answered(
            await agent_.client.get_authority_grant(approved.granted_grant_id, timeout=LIMIT_S), "get"
        ).grant
        assert list(grant.workspace_scope) == [world.ws]
        assert (grant.subject.principal_id, grant.delegate.principal_id) == (world.uid, agent_.topic)


@in_asyncio
async def test_105_r_a_task_that_waits_for_a_request_goes_on(any_target: str) -> None:
    async with World(any_target) as world:
        user_init = {"user": pb.UserIdentity(user_id=world.uid, window_id="w1")}
        agent = await world.agent("a").open()
        created = answered(await agent.client.create_task_sync("t", world.ws, timeout=LIMIT_S), "create_task")
        claimed = await agent.client.claim_task(created.task_id, timeout=LIMIT_S)
        answered(claimed, "claim")
        async with raw_stream(any_target.rsplit(",", maxsplit=1)[-1], **user_init) as window:
            await window.expect("connection_ack")
            # The SDK's own call is answered with what it does not read; the event tells the id.
            asking = asyncio.create_task(
                agent.client.request_authority(
                    requested_duration_seconds=60,
                    routing_principal=principal("user", world.uid),
                    target_subject=principal("user", world.uid),
                    task_id=created.task_id,
                    timeout=1.0,
                )
            )
            event = await window.expect("authority_request_event")
            await asking
            request_id = event.request.request_id
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_AUTHORITY, authority_request_id=request_id)
            answered(await agent.client.pause_task(created.task_id, wait_spec=wait, timeout=LIMIT_S), "pause")
            approve = pb.ResolveAuthorityRequestPayload(decision=pb.ResolveAuthorityRequestPayload.APPROVE)
            answered(await request_op(window, "r", op=Op.RESOLVE, request_id=request_id, resolve=approve), "approve")
        task = answered(await agent.client.get_task(created.task_id, timeout=LIMIT_S), "get_task").task
        assert task.status == pb.TASK_STATUS_RUNNING
