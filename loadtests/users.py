"""The users for locust: a class for each transport, and when there are how many."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from locust import LoadTestShape, User, constant, task
from locust.exception import StopUser

from loadtests.shapes import target

if TYPE_CHECKING:
    from loadtests.crew import Crew

log = logging.getLogger(__name__)


class GatewayUser(User):  # type: ignore[misc]
    """One member of the crew. Its only task is its whole life."""

    abstract = True
    wait_time = constant(0)
    crew: ClassVar[Crew]

    @task
    def live(self) -> None:
        """See `Member.live`."""
        try:
            self.crew.join().live()
        except Exception as error:
            self.crew.recorder.error(f"DEFECT_{type(error).__name__}", str(error))
            log.exception("a user of the load test failed")
        raise StopUser


class FramedUser(GatewayUser):
    """An agent on our own framing."""


class WebSocketUser(GatewayUser):
    """A window of a browser."""


class GrpcUser(GatewayUser):
    """An agent on gRPC."""


class RawGrpcUser(GatewayUser):
    """An agent on gRPC, for the load generator's sake without grpcio."""


USERS = {"framed": FramedUser, "websocket": WebSocketUser, "grpc": GrpcUser, "grpc-raw": RawGrpcUser}


class Pace(LoadTestShape):  # type: ignore[misc]
    """How many users this worker has; who comes when within a second is `Crew.turn`'s."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._plan = crew.plan

    def tick(self) -> tuple[int, float]:
        """See locust."""
        plan = self._plan
        return target(plan.what, plan.count, self.get_run_time(), plan.seconds), max(1.0, plan.connect_rate)
