"""The primary key of a stored message: topic id and offset in one integer."""

OFFSET_BITS = 36
"""Bits of the offset in a message's key: 6.8e10 messages per topic, 134 million topics."""

KEY_BITS = 63
"""Bits of a key, which both databases store as a signed integer of 8 bytes."""


def key_of(topic_id: int, offset: int) -> int:
    """Return a message's primary key, ordered by topic id, then by offset."""
    return topic_id << OFFSET_BITS | offset


def topic_id_of(key: int) -> int:
    """Return the id of the topic in a message's primary key."""
    return key >> OFFSET_BITS


def offset_of(key: int) -> int:
    """Return the offset in a message's primary key."""
    return key & ((1 << OFFSET_BITS) - 1)
