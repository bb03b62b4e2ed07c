"""Compile proto/aether/v1 into aether_trio/wire/pb: descriptors, stubs, services.

Needs grpcio-tools (for protoc), mypy-protobuf and grpclib in the running interpreter's environment.
`--check` writes nothing and exits 1 when a committed file is not what the tools produce now. The
output holds no time, path or tool version, so the same tool versions give the same bytes anywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("aether/v1/aether.proto", "aether/v1/sandbox_relay_tunnel.proto")
PACKAGE = "aether_trio.wire.pb"
TARGET = ROOT / "aether_trio" / "wire" / "pb"
# Generated files are exempt from our lint and formatting; saying so inside them needs no
# configuration elsewhere.
HEADER = "# Written by scripts/compile_proto.py; do not edit.\n# ruff: noqa\n# fmt: off\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        outputs = compile_all(Path(scratch))
    stale = [name for name, data in outputs.items() if not same(TARGET / name, data)]
    for name in stale:
        if check:
            print(f"{name} is not what proto/aether/v1 compiles to; run scripts/compile_proto.py", file=sys.stderr)
        else:
            (TARGET / name).write_bytes(outputs[name])
            print(f"wrote {(TARGET / name).relative_to(ROOT)}")
    return 1 if check and stale else 0


def same(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes() == data


def compile_all(scratch: Path) -> dict[str, bytes]:
    """Run protoc in the folder `scratch`; return the outputs by file name."""
    descriptor_set = scratch / "aether.binpb"
    run_protoc(
        f"--proto_path={ROOT / 'proto'}",
        "--include_imports",
        f"--descriptor_set_out={descriptor_set}",
        f"--mypy_out=quiet:{scratch}",
        f"--grpclib_python_out={scratch}",
        *SOURCES,
    )
    outputs = {"aether.binpb": slim(descriptor_set.read_bytes())}
    for source in SOURCES:
        stem = source.removesuffix(".proto")
        name = Path(stem).name
        outputs[f"{name}_pb2.pyi"] = stub(Path(scratch, f"{stem}_pb2.pyi").read_text()).encode()
        outputs[f"{name}_grpc.py"] = service_bases(Path(scratch, f"{stem}_grpc.py").read_text()).encode()
    return outputs


def run_protoc(*arguments: str) -> None:
    # protoc finds its plugins on PATH; the environment's own scripts come first even when it is not
    # activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, env={**os.environ, "PATH": path}
    )


def slim(serialized_set: bytes) -> bytes:
    """Drop every field's json_name, a quarter of the file: protobuf derives it again."""
    from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

    def strip(message: DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            strip(nested)

    descriptor_set = FileDescriptorSet.FromString(serialized_set)
    for file in descriptor_set.file:
        for message in file.message_type:
            strip(message)
    return descriptor_set.SerializeToString(deterministic=True)


def stub(text: str) -> str:
    """Make mypy-protobuf's type stub import from our package."""
    return HEADER + text.replace("from aether.v1 import ", f"from {PACKAGE} import ")


def service_bases(text: str) -> str:
    """Make grpclib's service classes import our messages, and grpclib.client late.

    It pulls in asyncio and ssl, which a server has no use for.
    """
    for source in SOURCES:
        module = source.removesuffix(".proto").replace("/", ".") + "_pb2"
        ours = module.rpartition(".")[2]
        text = text.replace(f"import {module}\n", f"from {PACKAGE} import {ours}\n").replace(f"{module}.", f"{ours}.")
    text = replace(text, "import grpclib.client\n", instead="")
    text = replace(text, "    import grpclib.server\n", after="    import grpclib.client\n")
    text = replace(text, "import abc\n", before="from __future__ import annotations\n\n")
    constructor = "    def __init__(self, channel: grpclib.client.Channel) -> None:\n"
    text = replace(text, constructor, after="        import grpclib.client\n\n")
    return HEADER + text


def replace(text: str, what: str, *, before: str = "", after: str = "", instead: str | None = None) -> str:
    """Replace the only occurrence of `what`; exit if a generator's output has changed."""
    if text.count(what) != 1:
        raise SystemExit(f"expected one {what!r} in generated code, found {text.count(what)}")
    return text.replace(what, before + (what if instead is None else instead) + after)


if __name__ == "__main__":
    sys.exit(main())
