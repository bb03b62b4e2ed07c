"""Builds a client's first message (InitConnection), all but its identity."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from aether_trio.client.options import ClientSettings
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb


def init_for(settings: ClientSettings, resume_session_id: str, credentials: Mapping[str, str]) -> pb.InitConnection:
    """Build an InitConnection with everything but the participant's identity."""
    return pb.InitConnection(
        credentials=dict(credentials),
        extensions=settings.extensions,
        resume_session_id=resume_session_id,
        client_version=__version__,
        client_sdk="aether-trio",
        client_build_info=pb.BuildInfo(runtime=f"python {platform.python_version()}", os=platform.system().lower()),
    )
