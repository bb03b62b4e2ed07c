"""A script that sends a text somewhere, waits for the answer, and prints it.

    python docs/examples/ask.py ag::default::echo::1 "hello"
    python docs/examples/ask.py sv::words "the cat and the dog" [--address aether://HOST:PORT] [--timeout 10]

Each run is an agent of its own (its name is random), so an answer cannot be one to an earlier run. It ends with 1 when
nobody answers in time or the message is refused.
"""

from __future__ import annotations

import argparse
import secrets
import sys

from aether_trio.client import AetherError, MessageType, connect_sync


def ask(address: str, workspace: str, topic: str, text: str, timeout_s: float) -> str:
    """The answer. Raises AetherError: a refusal, or RequestTimeout."""
    with connect_sync(address, workspace=workspace, implementation="ask", specifier=secrets.token_hex(8)) as agent:
        agent.send(topic, text, type=MessageType.CHAT)
        answer = agent.receive(timeout_s)
        answer.ack()
        return answer.text


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask an agent or a service.")
    parser.add_argument(
        "topic", help="ag::WORKSPACE::IMPLEMENTATION::SPECIFIER, or sv::IMPLEMENTATION for any instance"
    )
    parser.add_argument("text")
    parser.add_argument("--address", default="aether://127.0.0.1:50051")
    parser.add_argument("--workspace", default="default", help="where this script is")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the answer")
    arguments = parser.parse_args()
    try:
        print(ask(arguments.address, arguments.workspace, arguments.topic, arguments.text, arguments.timeout))
    except AetherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
