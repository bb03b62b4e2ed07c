"""What agents do most of the time: little, with nothing else on its way.

Each of these meets a server that sleeps before it, so that waking up, cold caches and a commit for
one message are in the cost. `raw-echo-paced` is the floor: a server that only echoes.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.scenarios.base import Scenario
from bench.scenarios.connections import ConnectOpen
from bench.scenarios.fanout import LONE
from bench.scenarios.kv import KV_1, PacedPutGet
from bench.scenarios.paced import PACED_AT
from bench.scenarios.raw_echo import PacedRawEcho

QUIET: Sequence[type[Scenario]] = (PacedRawEcho, *PACED_AT, *LONE, PacedPutGet, KV_1, ConnectOpen)
