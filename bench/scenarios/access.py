"""What access costs those who are allowed: rules, audit, grants, tokens.

The windows of what is compared take turns with each other and with the echo, each on its gateway:

- `…-without`: every workspace is open, and no participant's doings are recorded.
- plain: closed but for one's own workspace, 100,000 rules, the audit on. This is how it is served.
- `…-behalf`: the same gateway, and each message is sent in the name of a user, with a grant of a
  lineage of two.

`access-connect` and `access-connect-token` share a gateway. The one shows no credentials, the other
an API token; the difference is the goal, in echoes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from bench import control, wire
from bench.scenarios.base import Scenario, variant
from bench.scenarios.connections import ConnectOpen
from bench.scenarios.paced import PacedAt
from bench.scenarios.routed import Routed
from bench.world import Options

WITHOUT: Final = ("--set", "audit.enabled=false")
CLOSED: Final = ("--set", "access.default=closed")
OWNER: Final = "owner"
"""The user in whose name messages are sent."""
TIMES_ALLOWED: Final = 1.05
TIMES_ON_BEHALF: Final = 1.15
MORE_BY_TOKEN: Final = 3.0
LONE_RATE: Final = 1000.0


class _Compared(Scenario):
    one_transport: ClassVar[bool] = True
    arguments: ClassVar[Sequence[str]] = ()

    @classmethod
    def gateway_args(cls, options: Options) -> Sequence[str]:
        return cls.arguments

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | ({"rules": self.options.rules} if self.many_rules else {})


class _OnBehalf(Routed):
    """Each sender acts for one user, by a separate grant."""

    def further_fields(self) -> Sequence[bytes]:
        control.allow(control.UserWindow(self.world), OWNER, self.world.workspace)
        owner = control.UserWindow(self.world, OWNER)
        senders = [self.world.topic("sender", n) for n in range(self.options.pairs)]
        return [wire.on_behalf("user", OWNER, grant) for grant in control.grants_for(owner, senders)]


class AccessRouted(_Compared, Routed):
    in_flight = 16


class AccessRoutedOnBehalf(_OnBehalf, AccessRouted):
    pass


class AccessLone(_Compared, PacedAt):
    rate = LONE_RATE


class AccessLoneOnBehalf(_OnBehalf, AccessLone):
    pass


class AccessConnect(_Compared, ConnectOpen):
    pass


class AccessConnectToken(AccessConnect):
    """Scenario: the same with an API token that lets in every agent of the workspaces."""

    def prepare(self) -> None:
        ((_, self._token),) = control.create_tokens(control.UserWindow(self.world), 1, f"{self.world.workspace}*")
        super().prepare()

    def credentials(self) -> Mapping[str, str]:
        return {"api_key": self._token}


def _group(
    name: str, doc: str, plain: type[Scenario], special: type[Scenario], special_name: str, **goals: Any
) -> list[type[Scenario]]:
    without = f"{name}-without"
    served = {"beside": name, "many_rules": True, "arguments": CLOSED}
    return [
        variant(plain, without, f"{doc}; all open, no audit", beside=name, arguments=WITHOUT),
        variant(
            plain, name, f"{doc}; closed, 100,000 rules, audit", against=without, most_times=TIMES_ALLOWED, **served
        ),
        variant(special, f"{name}-{special_name[0]}", f"{doc}; {special_name[1]}", **served, **goals),
    ]


_BEHALF: Final = ("behalf", "the same, each message in the name of a user, by a grant")
_ROUTED = _group(
    "access-routed-16",
    "`routed-16`",
    AccessRouted,
    AccessRoutedOnBehalf,
    _BEHALF,
    against="access-routed-16-without",
    most_times=TIMES_ON_BEHALF,
)
_LONE = _group(
    "access-lone",
    "`paced-1000`",
    AccessLone,
    AccessLoneOnBehalf,
    _BEHALF,
    against="access-lone-without",
    most_times=TIMES_ON_BEHALF,
)
_CONNECT = [
    variant(
        AccessConnect,
        "access-connect-without",
        "`connect-open`; all open, no audit",
        beside="access-connect",
        arguments=WITHOUT,
    ),
    variant(
        AccessConnect,
        "access-connect",
        "`connect-open`; closed, 100,000 rules, audit",
        beside="access-connect",
        against="access-connect-without",
        many_rules=True,
        arguments=CLOSED,
    ),
    variant(
        AccessConnectToken,
        "access-connect-token",
        "the same, each with an API token",
        beside="access-connect",
        against="access-connect",
        most_more=MORE_BY_TOKEN,
        many_rules=True,
        arguments=CLOSED,
    ),
]

COMPARED: Sequence[type[Scenario]] = (*_ROUTED, *_LONE, *_CONNECT)
