"""Answer every message with its payload and the number of answers so far, on trio.

    python docs/examples/echo_agent.py [aether://HOST:PORT] [--workspace default] [--name 1]

The count is a checkpoint, so it survives a restart. The agent saves it after the answer and before
it acknowledges the message: if the agent dies in between, it gets and answers the message again.
"""

from __future__ import annotations

import argparse

import trio

from aether_trio.client import AetherError, AgentClient


async def serve(address: str, workspace: str, name: str) -> None:
    """Answer until the gateway ends the session, or Ctrl-C."""
    async with AgentClient(address, workspace=workspace, implementation="echo", specifier=name) as agent:
        checkpoint = await agent.checkpoints.load()
        answered = int(checkpoint.data) if checkpoint is not None else 0
        print(f"{agent.topic} has answered {answered} messages so far", flush=True)
        async for message in agent:
            answered += 1
            try:
                await agent.reply(message, b"%d: %b" % (answered, message.payload), type=message.type)
            except AetherError as error:
                if error.retryable:
                    raise
                print(f"cannot answer {message.source}: {error}", flush=True)
            await agent.checkpoints.save(b"%d" % answered)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer every message.")
    parser.add_argument("address", nargs="?", default="aether://127.0.0.1:50051")
    parser.add_argument("--workspace", default="default")
    parser.add_argument("--name", default="1", help="the last part of its identity")
    arguments = parser.parse_args()
    try:
        trio.run(serve, arguments.address, arguments.workspace, arguments.name)
    except KeyboardInterrupt:
        pass
    except AetherError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
