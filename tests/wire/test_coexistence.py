"""The SDK and our package in one process, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

OURS = "from aether_trio.wire.pb import aether_pb2 as ours, sandbox_relay_tunnel_pb2 as our_tunnel"
SDK = "from scitrera_aether_client.proto import aether_pb2 as sdk, sandbox_relay_tunnel_pb2 as sdk_tunnel"

EXCHANGE = textwrap.dedent(
    """
    def samples(pb, tunnel):
        up, down = pb.UpstreamMessage, pb.DownstreamMessage
        yield up(init=pb.InitConnection(
            agent=pb.AgentIdentity(workspace="w", implementation="i", specifier="ü"),
            credentials={"token": "t", "x-api-key": "k"},
            extensions=[pb.ExtensionDeclaration(uri="urn:x", required=True)],
        ))
        yield up(send=pb.SendMessage(target_topic="ga::w", payload=bytes(range(256)), message_type=pb.CHAT))
        yield up(kv_op=pb.KVOperation(op=pb.KVOperation.COMPARE_AND_SET, scope=pb.KVOperation.USER_SHARED, ttl=-1))
        yield up(active_extensions=["urn:x", "urn:y"])
        yield down(kv=pb.KVResponse(success=True, kv_map={"a": b"1", "b": b""}, counter_value=-(2**63)))
        yield down(admin=pb.AdminResponse(health=pb.HealthInfo(checks={
            "db": pb.HealthCheck(status=pb.HEALTH_CHECK_STATUS_OK, latency="1ms"),
        })))
        yield down(task_event=pb.TaskEvent(
            task_id="t", authority_request=pb.TaskAuthorityRequestEventRelay(event=pb.AuthorityRequestEvent(
                request=pb.AuthorityRequest(desired_workspace_scope=["w"], metadata={"k": "v"}),
            )),
        ))
        yield down(progress_update=pb.ProgressUpdate(completion=0.5, kind=pb.PROGRESS_KIND_TASK))
        yield down(msg=pb.IncomingMessage())
        yield tunnel.TunnelFrame(down=down(signal=pb.Signal(type=pb.Signal.GRACEFUL_DISCONNECT)))

    ours_made, sdk_made = list(samples(ours, our_tunnel)), list(samples(sdk, sdk_tunnel))
    for mine, theirs in zip(ours_made, sdk_made, strict=True):
        assert type(mine) is not type(theirs)
        assert type(theirs).FromString(mine.SerializeToString()) == theirs, mine
        assert type(mine).FromString(theirs.SerializeToString()) == mine, theirs
    print("exchanged", len(ours_made))
    """
)


def run(*parts: str) -> str:
    script = "\n".join(parts)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("imports", [(OURS, SDK), (SDK, OURS)], ids=["ours first", "SDK first"])
def test_both_are_importable_and_exchange_bytes(imports: tuple[str, str]) -> None:
    assert run(*imports, EXCHANGE) == "exchanged 10"


def test_ours_leaves_the_default_pool_alone() -> None:
    script = """
    from google.protobuf import descriptor_pool
    try:
        descriptor_pool.Default().FindMessageTypeByName("aether.v1.UpstreamMessage")
    except KeyError:
        print("untouched")
    """
    assert run(OURS, textwrap.dedent(script)) == "untouched"


def test_the_service_bases_do_not_load_asyncio() -> None:
    script = "import aether_trio.wire.pb.aether_grpc, sys; print('asyncio' in sys.modules)"
    assert run(script) == "False"
