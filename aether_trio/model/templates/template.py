"""A compiled template, and how a source becomes one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aether_trio.model.evaluation_meter import note_operations
from aether_trio.model.templates.budget import DEFAULT_BUDGET, TemplateBudget
from aether_trio.model.templates.compiler import compile_bodies
from aether_trio.model.templates.errors import RenderFault, located
from aether_trio.model.templates.nodes import NodeList
from aether_trio.model.templates.parser import parse_templates
from aether_trio.model.templates.placeholders import CLOSING, OPENING, Marked, Printed
from aether_trio.model.templates.reads import static_reads
from aether_trio.model.templates.rendering import Frame, Rendering
from aether_trio.model.templates.values import NO_VALUE, from_data, printable_text

_RESERVED: Final = re.compile(f"[{OPENING}{CLOSING}\ud800-\udfff]")
MAX_SOURCE: Final = 64 * 1024
"""The longest source in characters."""


class Template:
    """A compiled template; it has no state, so one serves any number of renderings."""

    __slots__ = ("_reads", "_run", "_trees", "name", "source")

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name
        self._trees: dict[str, NodeList] = parse_templates(source, name)
        self._run = compile_bodies(self._trees)[name]
        self._reads: Mapping[tuple[str, ...], int] | None = None

    def render(self, data: object, *, budget: TemplateBudget | None = None) -> str:
        """Return the text that Go prints for these data.

        Bytes that are no UTF-8 become U+FFFD. TemplateError says what failed and where.
        """
        return printable_text(self._render(data, budget, None))

    def render_marked(self, data: object, *, budget: TemplateBudget | None = None) -> Marked:
        """Return the rendering with placeholders for printed values, to be parsed as YAML."""
        printed: list[Printed] = []
        text = self._render(data, budget, printed)
        return Marked(text, tuple(printed))

    def _render(self, data: object, budget: TemplateBudget | None, printed: list[Printed] | None) -> str:
        rendering = Rendering(budget or DEFAULT_BUDGET, printed)
        try:
            dot = NO_VALUE if data is None else from_data(data)
            self._run(Frame(rendering, dot), dot)
        except RenderFault as fault:
            raise located(fault, self.source) from None
        except RecursionError:
            raise located(RenderFault("the template is nested too deep to be rendered"), self.source) from None
        finally:
            note_operations(rendering.meter.budget.operations - rendering.meter.operations)
        return rendering.text()

    def paths(self) -> frozenset[tuple[str, ...]]:
        """Return what the template may read of its data, as far as the source tells.

        `{{.input.topic}}` reads `("input", "topic")`, also through variables, `with` and named
        templates. Reading something as a whole (`{{.input}}`, `{{range .input.items}}`) gives its
        path, the empty one for all data. Fields of a loop's elements have no path.
        """
        return frozenset(self.reads())

    def reads(self) -> Mapping[tuple[str, ...], int]:
        """Return `paths`, each with the offset in the source where it is read first."""
        if self._reads is None:
            self._reads = static_reads(self._trees, self.name)
        return self._reads

    def place(self, offset: int) -> tuple[int, int]:
        """Return the line and column, both from 1, of an offset in the source."""
        error = located(RenderFault("", offset), self.source)
        return error.line, error.column


def compile_template(source: str, name: str = "template") -> Template:
    """Compile a source; `name` is that of its main template, which it may invoke.

    TemplateError says where the source is malformed, is nested too deep, is longer than MAX_SOURCE
    characters, or has a character that stands for printed values or is a lone surrogate.
    """
    try:
        _check_characters(source)
        return Template(source, name)
    except RenderFault as fault:
        raise located(fault, source) from None
    except RecursionError:
        raise located(RenderFault("the template is nested too deep to be compiled"), source) from None


def _check_characters(source: str) -> None:
    if len(source) > MAX_SOURCE:
        raise RenderFault(f"the template has {len(source):,} characters; {MAX_SOURCE:,} are allowed", MAX_SOURCE)
    if match := _RESERVED.search(source):
        raise RenderFault(f"the character U+{ord(match[0]):04X} cannot be in a template; take it out", match.start())
