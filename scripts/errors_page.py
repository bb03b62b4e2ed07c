"""Write docs/errors.md from aether_trio/model/error_guide.py.

python scripts/errors_page.py            write the page
python scripts/errors_page.py --check    exit with 1 when the page is not what would be written
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aether_trio.client.errors import ENDINGS, SessionEnded, from_code
from aether_trio.model.error_guide import ERROR_GUIDE, ErrorEntry, Where
from aether_trio.model.errors import RETRYABLE, RETRYABLE_STATUSES, Status
from aether_trio.transport.framed.link import RETRYABLE_MISTAKES
from aether_trio.wire.framing.constants import ErrorCode

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "errors.md"

_CODE: Final = re.compile(r"[A-Z][A-Z0-9]{2,}(?:_[A-Z0-9]+)*|[A-Z]+(?:_[A-Z0-9]+)+")

_HEAD: Final = """\
# Errors: what each code means, and what to do

This page is for a reader who has met an error. It has every code that a client, a page in a browser
or a command can meet, with its cause and its remedy. `scripts/errors_page.py` writes it from
`aether_trio/model/error_guide.py`; `aether errors CODE` shows the same in a terminal.

*Where* says how a code is met: in the answer to a **request** or message, as the end of a
**connection**, in an ERROR frame of the binary **framing**, as a **websocket** close code, in an
exception of the Python **client**, or as the exit code of the **command line**. *Again* says
whether the same may work later without a change. *Exception* is the class that the Python client
raises. [wire.md](wire.md#how-a-connection-ends) has the numbers of the statuses.

"""


def client_codes(folder: Path = ROOT / "aether_trio" / "client") -> dict[str, set[str]]:
    """Return the literal codes of the client, and the exception classes with them."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        for class_name, call in _calls(ast.parse(path.read_text("utf-8")), ""):
            name, code = _carrier(class_name, call)
            if code:
                found[code].add(name)
    return dict(found)


def _calls(node: ast.AST, class_name: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield class_name, child
        yield from _calls(child, child.name if isinstance(child, ast.ClassDef) else class_name)


def _carrier(class_name: str, call: ast.Call) -> tuple[str, str]:
    """Return the exception class of a call and its code; two empty texts otherwise."""
    match call.func:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__"):
            name, position = class_name, 0
        case ast.Name(id="from_text"):
            name, position = "AetherError", 1
        case ast.Name(id=made) if made[:1].isupper():
            name, position = made, 0
        case _:
            return "", ""
    match call.args[position : position + 1]:
        case [ast.Constant(value=str(code))] if _CODE.fullmatch(code) and not code.startswith("ERR_"):
            return name, code
        case [ast.Attribute(value=ast.Attribute(value=ast.Name(id="CloseReason"), attr=code), attr="name")]:
            return name, code
    return "", ""


def render() -> str:
    """Return the text of docs/errors.md."""
    carriers = client_codes()
    rows = [_row(entry, carriers) for entry in ERROR_GUIDE]
    return (
        _HEAD + "| code | where | cause | what to do | again | exception |\n|---|---|---|---|---|---|\n" + "".join(rows)
    )


def _row(entry: ErrorEntry, carriers: dict[str, set[str]]) -> str:
    cells = (f"`{entry.code}`", entry.where, entry.cause, entry.remedy, _again(entry), _exception(entry, carriers))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _again(entry: ErrorEntry) -> str:
    match entry.where:
        case Where.REQUEST:
            return "yes" if entry.code in RETRYABLE else "no"
        case Where.ENDING:
            return "yes" if Status[entry.code] in RETRYABLE_STATUSES else "no"
        case Where.FRAMING:
            return "yes" if ErrorCode[entry.code] in RETRYABLE_MISTAKES else "no"
        case _:
            return ""


def _exception(entry: ErrorEntry, carriers: dict[str, set[str]]) -> str:
    match entry.where:
        case Where.REQUEST:
            names = {type(from_code(entry.code, "", retryable=entry.code in RETRYABLE)).__name__}
        case Where.ENDING:
            names = {ENDINGS.get(Status[entry.code], SessionEnded).__name__}
        case Where.FRAMING:
            names = {"ProtocolViolation"}
        case Where.CLIENT:
            names = {"ProtocolViolation" if name == "ProtocolBreak" else name for name in carriers.get(entry.code, ())}
        case _:
            names = set()
    return ", ".join(f"`{name}`" for name in sorted(names))


def main() -> int:
    text = render()
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text("utf-8") == text:
            return 0
        sys.stderr.write("docs/errors.md is not current; run python scripts/errors_page.py\n")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
