"""The interface by which links report delivery to a queued message's subscription."""

from __future__ import annotations

from typing import Protocol


class Origin(Protocol):
    """The subscription that a message in an outbox was queued for."""

    @property
    def topic(self) -> str:
        """The name of the subscription's topic."""

    @property
    def position_done(self) -> int:
        """The offset up to which the consumer is done; 0 for a shared topic."""

    @property
    def shared(self) -> bool:
        """Whether several consumers share the topic, so that each is done separately."""

    @property
    def is_open(self) -> bool:
        """Whether further messages may be delivered to the subscription."""

    def delivered(self, offset: int) -> None:
        """Note that the operating system has all messages offered up to `offset`."""

    def acknowledged(self, offset: int) -> None:
        """Note that the application is done up to `offset`, or only with it if `shared`."""


Delivery = tuple[bytes, Origin, int]
"""A serialized DownstreamMessage, its subscription, its offset in the topic."""
