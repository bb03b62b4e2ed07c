"""Test that `aether dev --workflows` applies files at the start and on change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from aether_trio.client import UserClient
from tests.cli.shell import aether, fails
from tests.helpers.gateway import start_gateway

GOOD = "id: one\nsteps: [{id: a, output: 1}]\n"


def until(said: Callable[[], str], text: str) -> None:
    """Wait until the gateway has said a text."""

    async def wait() -> None:
        with trio.fail_after(120):
            while text not in said():
                await trio.sleep(0.1)

    trio.run(wait)


def test_files_are_applied_at_the_start_and_on_change(tmp_path: Path) -> None:
    directory = tmp_path / "workflows"
    directory.mkdir()
    (directory / "one.yaml").write_text(GOOD)
    with start_gateway(ephemeral=True, extra_args=["--workflows", str(directory)]) as gateway:
        until(gateway.output, "workflow one version 1 is created in default")
        (directory / "one.yaml").write_text(GOOD.replace("output: 1", "otput: 1"))
        until(gateway.output, "nothing was applied, and what was applied before stays")
        assert f"{directory}/one.yaml:2:17: step 'a' has no key 'otput'" in gateway.output()
        (directory / "two.yaml").write_text(GOOD.replace("one", "two"))
        (directory / "one.yaml").write_text(GOOD.replace("output: 1", "output: 2"))
        until(gateway.output, f"workflows: all files of {directory} are applied again")
        until(gateway.output, "workflow two version 1 is created in default")
        until(gateway.output, "workflow one version 2 is updated in default")
        assert trio.run(versions, f"aether://{gateway.address}") == {"one": 2, "two": 1}
        assert gateway.output().count("version 1 is created") == 2


async def versions(address: str) -> dict[str, int]:
    async with UserClient(address, user_id="ann", window_id="1") as client:
        return {one.id: one.version for one in await client.workflow.definitions("default")}


def test_a_directory_that_is_not_there_is_3(tmp_path: Path) -> None:
    fails(3, "there is no directory", "dev", "--workflows", str(tmp_path / "none"))
    assert "whenever a file changes" in aether("dev", "--help").stdout
