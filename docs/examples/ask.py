"""Send a text to an agent or a service, wait for the answer, and print it.

    python docs/examples/ask.py ag::default::echo::1 "hello"
    python docs/examples/ask.py sv::words "the cat and the dog" [--timeout 10]

Each run connects as an agent with a random name, so it gets no answer to an earlier run. The exit
status is 1 when no answer comes in time or the message is refused.
"""

from __future__ import annotations

import argparse
import secrets
import sys

from aether_trio.client import AetherError, MessageType, connect_sync


def ask(address: str, workspace: str, topic: str, text: str, timeout_s: float) -> str:
    """Return the answer; raise AetherError for a refusal, or RequestTimeout."""
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
    parser.add_argument("--workspace", default="default", help="the workspace of this script")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the answer")
    arguments = parser.parse_args()
    try:
        print(ask(arguments.address, arguments.workspace, arguments.topic, arguments.text, arguments.timeout))
    except AetherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
