"""The tree of a parsed template.

Each node has the offset of its place in the source, in characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aether_trio.model.templates.literals import Number


@dataclass(frozen=True, slots=True)
class DotWord:
    """The cursor, `.`."""

    offset: int


@dataclass(frozen=True, slots=True)
class NilWord:
    """The word `nil`."""

    offset: int


@dataclass(frozen=True, slots=True)
class FieldWord:
    """Fields of the cursor, `.a.b`."""

    offset: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VariableWord:
    """A variable, with its `$`, and fields of it: `$x.a.b`."""

    offset: int
    variable: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainWord:
    """Fields of a pipeline's value, `(index . 1).a.b`."""

    offset: int
    base: TemplatePipeline | FunctionWord
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FunctionWord:
    """The name of a function."""

    offset: int
    name: str


@dataclass(frozen=True, slots=True)
class ConstantWord:
    """A bool, number or string; `text` is how it is written."""

    offset: int
    value: bool | str | Number
    text: str


@dataclass(frozen=True, slots=True)
class TemplateCommand:
    """Words separated by spaces: a value, or a function and its arguments."""

    offset: int
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class TemplatePipeline:
    """Commands separated by `|`, whose value may be put into variables.

    `declared` are the variables before `:=`, or before `=` if `assigns`.
    """

    offset: int
    declared: tuple[str, ...]
    assigns: bool
    commands: tuple[TemplateCommand, ...]


Word = DotWord | NilWord | FieldWord | VariableWord | ChainWord | FunctionWord | ConstantWord | TemplatePipeline


@dataclass(frozen=True, slots=True)
class LiteralText:
    """Text between actions."""

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class PrintAction:
    """A pipeline whose value is printed, unless it declares variables."""

    offset: int
    pipeline: TemplatePipeline


@dataclass(frozen=True, slots=True)
class BranchAction:
    """`if` or `with`, its `else if` or `else with` clauses, and its `else`."""

    offset: int
    word: Literal["if", "with"]
    clauses: tuple[tuple[TemplatePipeline, NodeList], ...]
    otherwise: NodeList | None


@dataclass(frozen=True, slots=True)
class LoopAction:
    """`range`, and its `else` for nothing to range over."""

    offset: int
    pipeline: TemplatePipeline
    body: NodeList
    otherwise: NodeList | None


@dataclass(frozen=True, slots=True)
class JumpAction:
    """`break` or `continue`."""

    offset: int
    word: Literal["break", "continue"]


@dataclass(frozen=True, slots=True)
class TemplateAction:
    """`template`, or the place of a `block`."""

    offset: int
    name: str
    pipeline: TemplatePipeline | None


@dataclass(frozen=True, slots=True)
class NodeList:
    """A list of nodes."""

    offset: int
    nodes: tuple[BodyNode, ...]


BodyNode = LiteralText | PrintAction | BranchAction | LoopAction | JumpAction | TemplateAction
