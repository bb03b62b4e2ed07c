"""Check names, prose and the imports of each package; `nox -s lint` runs this.

    python scripts/check_house.py            check every file of the repository
    python scripts/check_house.py PATH ...   check these files and folders

- In aether_trio a class name is used once, and no files of a package import each other in a circle.
- Prose ends at column 100, the first line of a docstring has 80 characters at most.
- No private word (PRIVATE_WORDS) and no retired name (RETIRED_NAMES) is in a file.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "aether_trio"
PROSE_COLUMNS: Final = 100
SUMMARY_CHARACTERS: Final = 80
SUFFIXES: Final = (".py", ".md", ".js", ".ts", ".css", ".html", ".toml", ".yaml")
NOT_OURS: Final = ("aether_trio/wire/pb/", "proto/")
"""Generated code, and the protocol as it was published."""
NAMES_THE_WORDS: Final = "scripts/check_house.py"

PRIVATE_WORDS: Final = (
    "whoever",
    "somebody",
    "nobody",
    "anybody",
    "everybody",
    "what comes",
    "the way to",
    "by itself",
    "in vain",
    "of its own",
)
"""Words that stand for a thing without its name: say "the client" or "the node" instead."""

RETIRED_NAMES: Final = {
    "lane": "transport, ephemeral topic or writer",
    "lanes": "transports, ephemeral topics or writers",
    "HoldRow": "LockRow",
    "HeldTask": "RunningJob",
    "desk": "ClaimBatcher, WriteBatcher or QueueScheduler",
    "errand": "Mutation",
    "SharedGroup": "LeasedQueue or CommitGroup",
    "renounce": "revoke",
    "breath_s": "min_interval_s",
    "handing": "assignment",
    "crowd": "session_batch",
    "clockwork": "timer",
    "chats": "conversations",
    "hub": "event_subscriptions",
    "startups": "startup",
    "waker": "autostarter",
    "stubborn": "MAX_RESTARTS",
    "stranger": "unregistered or unauthenticated",
    "strangers": "unregistered or unauthenticated",
    "unbuilt": "unimplemented",
    "Aside": "Deferred",
    "doors": "listeners",
    "wiring": "limits or metrics",
    "companion": "sidecar_process",
    "told_of_gap": "gap_reported",
}
"""Names that the project used to have, with the field's words. Lowercase ones match any case."""

DIRECTIVE: Final = re.compile(r"#\s*(noqa|type:|pragma:|ruff:|mypy:|fmt:|pyright:)")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A line of a file that breaks a rule of the house, with the rule's text."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Match words alone, as a part of an identifier, or across a line break."""
    spellings = {case(word) if word.islower() else word for word in words for case in (str, str.capitalize, str.upper)}
    any_word = "|".join(r"[\s#]+".join(map(re.escape, spelling.split())) for spelling in sorted(spellings))
    return re.compile(rf"(?<![A-Za-z])({any_word})(?![a-z])")


_PRIVATE: Final = _pattern(PRIVATE_WORDS)
_RETIRED: Final = _pattern(RETIRED_NAMES)


def check_words(path: str, source: str) -> Iterator[Finding]:
    """Find private words and retired names (lists in this script) in a project file."""
    if path == NAMES_THE_WORDS:
        return
    for match in _PRIVATE.finditer(source):
        word = " ".join(re.split(r"[\s#]+", match[1]))
        if source[match.start() - 1 : match.end() + 1] == f'"{word}"':
            continue  # it is a name itself: the user "nobody"
        yield Finding(path, _line_of(source, match), f'"{word}" does not name the thing: say what is meant')
    for match in _RETIRED.finditer(source):
        name = match[1]
        field_word = RETIRED_NAMES.get(name) or RETIRED_NAMES[name.lower()]
        yield Finding(path, _line_of(source, match), f'"{name}" is a retired name: use {field_word}')


def _line_of(source: str, match: re.Match[str]) -> int:
    return source.count("\n", 0, match.start()) + 1


def check_python(path: str, source: str) -> Iterator[Finding]:
    """Find prose of a Python file that is too wide or too long for a first line."""
    tree = ast.parse(source)
    lines = source.splitlines()
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            length = len(text.partition("\n")[0])
            if length > SUMMARY_CHARACTERS:
                yield Finding(
                    path,
                    node.body[0].lineno,
                    f"the first line of this docstring has {length} characters; {SUMMARY_CHARACTERS} are allowed",
                )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.search(token.string):
            prose.add(token.start[0])
    for number in sorted(prose):
        yield from _check_width(path, number, lines[number - 1])


def check_markdown(path: str, source: str) -> Iterator[Finding]:
    """Find prose of a Markdown file that is too wide."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced:
            yield from _check_width(path, number, re.sub(r"\]\([^)]*\)", "]", line))


def _check_width(path: str, number: int, line: str) -> Iterator[Finding]:
    if line.lstrip().startswith("|"):  # a row of a table
        return
    width = len(re.sub(r"https?://\S+", "", line))
    if width > PROSE_COLUMNS:
        yield Finding(path, number, f"prose ends at column {width}; {PROSE_COLUMNS} is the last one allowed")


def check_class_names(sources: Mapping[str, str]) -> Iterator[Finding]:
    """Find class names that the package has twice, at each of their places."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append((path, node.lineno))
    for name, found in places.items():
        for path, line in found if len(found) > 1 else ():
            others = ", ".join(sorted({other for other, _ in found} - {path})) or "this file"
            yield Finding(path, line, f"another class is called {name} too, in {others}")


def check_circles(sources: Mapping[str, str]) -> Iterator[Finding]:
    """Find circles of Python files that import each other."""
    modules = {_module_of(path): path for path in sources}
    imports = {
        module: {name for name in _imported(sources[path], modules) if name != module}
        for module, path in modules.items()
    }
    while True:
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1][::-1]  # each imports the next
            yield Finding(modules[circle[0]], 1, "these files import each other: " + " -> ".join(circle))
            imports[circle[0]].discard(circle[1])
        else:
            return


def _module_of(path: str) -> str:
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


def _imported(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Yield the modules that a file imports; ruff forbids relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                yield from (one for one in (submodule if submodule in modules else node.module,) if one in modules)


def check_all(sources: Mapping[str, str]) -> list[Finding]:
    """Return every finding in these files; their paths begin at the project's root."""
    findings: set[Finding] = set()
    for path, source in sources.items():
        findings.update(check_words(path, source))
        if path.endswith(".py"):
            findings.update(check_python(path, source))
        elif path.endswith(".md"):
            findings.update(check_markdown(path, source))
    package = {
        path: source for path, source in sources.items() if path.startswith(f"{PACKAGE}/") and path.endswith(".py")
    }
    findings.update(check_class_names(package))
    findings.update(check_circles(package))
    return sorted(findings)


def read_sources(root: Path = ROOT) -> dict[str, str]:
    """Read the project's files that git lists and that this script can judge."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return {
        path: (root / path).read_text(encoding="utf-8")
        for path in sorted(listed)
        if path.endswith(SUFFIXES) and not path.startswith(NOT_OURS) and (root / path).is_file()
    }


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print the findings; return 1 when there are some."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and folders to check (default: all)")
    options = parser.parse_args(arguments)
    findings = check_all(read_sources(root))
    if options.paths:
        chosen = [(Path.cwd() / path).resolve().relative_to(root) for path in options.paths]
        findings = [one for one in findings if any(Path(one.path).is_relative_to(path) for path in chosen)]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings in {len({one.path for one in findings})} files", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
