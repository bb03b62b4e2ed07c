"""What a compilation of documents uses: the languages, YAML, JSON Schema and cron."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from aether_trio.model.expressions import Typed, compile_expression
from aether_trio.model.templates import compile_template
from aether_trio.model.workflows.compiling import Tools
from aether_trio.model.workflows.values import CompiledExpression, CompiledTemplate
from aether_trio.services.workflows.documents.cron import check_schedule
from aether_trio.services.workflows.documents.regex import compile_regex
from aether_trio.services.workflows.documents.schemas import check_schema
from aether_trio.services.workflows.documents.yaml_reader import read_yaml


class _DocumentLanguages:
    """Expressions whose patterns are RE2's, and templates."""

    def expression(
        self, source: str, variables: Collection[str], look: Callable[[str], Typed | None] | None = None
    ) -> CompiledExpression:
        return compile_expression(source, regex=compile_regex, variables=variables, look=look)

    def template(self, source: str) -> CompiledTemplate:
        return compile_template(source)


TOOLS: Final = Tools(
    languages=_DocumentLanguages(),
    read_yaml=read_yaml,
    check_schema=check_schema,
    check_schedule=check_schedule,
)
