"""Reads the tokens of an expression into a tree, by the grammar of expr 1.17.

The grammar is its parser: operators by precedence, from `|` (loosest) to `??` (tightest).
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.expressions import lexer
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.lexer import BRACKET, IDENTIFIER, NUMBER, OPERATOR, STRING, ExpressionToken
from aether_trio.model.expressions.syntax import (
    Array,
    Binary,
    Builtin,
    Call,
    Chain,
    Conditional,
    Let,
    Literal,
    Mapping,
    MemberAccess,
    Name,
    Pointer,
    Predicate,
    Slice,
    Statements,
    SyntaxNode,
    Unary,
)

MAX_NODES: Final = 10_000
MAX_NESTING: Final = 60
_UNARY: Final = {"not": 50, "!": 50, "-": 90, "+": 90}
_BINARY: Final = {
    "|": 0,
    "or": 10,
    "||": 10,
    "and": 15,
    "&&": 15,
    "==": 20,
    "!=": 20,
    "<": 20,
    ">": 20,
    ">=": 20,
    "<=": 20,
    "in": 20,
    "matches": 20,
    "contains": 20,
    "startsWith": 20,
    "endsWith": 20,
    "..": 25,
    "+": 30,
    "-": 30,
    "*": 60,
    "/": 60,
    "%": 60,
    "**": 100,
    "^": 100,
    "??": 500,
}
_RIGHT: Final = frozenset({"**", "^"})
_COMPARISONS: Final = frozenset({"<", ">", ">=", "<="})
_NEGATED: Final = frozenset({"contains", "matches", "startsWith", "endsWith", "in"})
_BRACKETS: Final = {")": "(", "]": "[", "}": "{"}
_MOST_INT: Final = (1 << 63) - 1

VALUE: Final = "value"
PREDICATE: Final = "predicate"
PREDICATES: Final[dict[str, tuple[tuple[str, bool], ...]]] = {
    **dict.fromkeys(
        ("all", "none", "any", "one", "filter", "map", "find", "findIndex", "findLast", "findLastIndex", "groupBy"),
        ((VALUE, True), (PREDICATE, True)),
    ),
    **dict.fromkeys(("count", "sum"), ((VALUE, True), (PREDICATE, False))),
    **dict.fromkeys(("sortBy", "reduce"), ((VALUE, True), (PREDICATE, True), (VALUE, False))),
}
"""The arguments of the builtins with predicates: their kind, and whether they are required."""


def parse(source: str, builtins: frozenset[str]) -> SyntaxNode:
    """Return the tree of a source; faults at the first token that does not fit."""
    return _Parser(source, builtins).whole()


class _Parser:
    """Reads one source; each method reads what its name says and stops behind it."""

    def __init__(self, source: str, builtins: frozenset[str]) -> None:
        self.tokens = lexer.tokens_of(source)
        self.current = next(self.tokens)
        self.following = next(self.tokens, self.current)
        self.builtins = builtins
        self.predicates = 0  # how many predicates are around the current token
        self.nodes = 0
        self.nesting = 0

    def whole(self) -> SyntaxNode:
        node = self.sequence()
        if self.current.kind != lexer.END:
            raise self.unexpected()
        return node

    # Tokens.

    def next(self) -> ExpressionToken:
        """Go to the next token; return the one before."""
        token = self.current
        if token.kind == lexer.END:
            raise self.unexpected()
        self.current = self.following
        self.following = next(self.tokens, self.current)
        return token

    def unexpected(self) -> Fault:
        token = self.current
        if token.kind == lexer.END:
            return Fault("the expression ends too early", token.offset)
        if token.kind == BRACKET and token.text in _BRACKETS:
            return Fault(f"'{token.text}' closes nothing here, or something before it is missing", token.offset)
        return Fault(f"{token} does not fit here", token.offset)

    def expect(self, kind: str, text: str | None = None) -> ExpressionToken:
        if not (self.current.is_(kind) if text is None else self.current.is_(kind, text)):
            if text is not None:
                raise Fault(f"'{text}' is missing before {self.current}", self.current.offset)
            raise self.unexpected()
        return self.next()

    def counted(self) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise Fault(f"the expression has more than {MAX_NODES} parts", self.current.offset)

    # Expressions.

    def sequence(self) -> SyntaxNode:
        first = self.expression(0)
        nodes = [first]
        while self.current.is_(OPERATOR, ";"):
            self.next()
            if self.current.kind == lexer.END:
                break
            nodes.append(self.expression(0))
        return first if len(nodes) == 1 else Statements(first.offset, nodes)

    def expression(self, precedence: int) -> SyntaxNode:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise Fault(f"the expression is nested more than {MAX_NESTING} deep", self.current.offset)
        node = self.operation(precedence)
        self.nesting -= 1
        return node

    def operation(self, precedence: int) -> SyntaxNode:
        if precedence == 0 and self.current.is_(OPERATOR, "let"):
            return self.let()
        if precedence == 0 and self.current.is_(OPERATOR, "if"):
            return self.if_else()
        left = self.primary()
        previous = ""
        while self.current.kind == OPERATOR:
            token = self.current
            negated = token.text == "not"
            if negated:
                following = self.following
                if following.text not in _NEGATED or following.kind != OPERATOR:
                    self.next()
                    raise self.unexpected()
                if _BINARY[following.text] < precedence:
                    break
                self.next()
                token = following
            binds = _BINARY.get(token.text)
            if binds is None or binds < precedence:
                break
            self.next()
            if token.text == "|":
                left = self.call(self.expect(IDENTIFIER), [left])
                previous = token.text
                continue
            if previous == "??" and token.text != "??":
                raise Fault(f"'{token.text}' and '??' cannot be mixed: put one of them in parentheses", token.offset)
            if token.text in _COMPARISONS:
                left = self.comparison(left, token, binds)
            else:
                right = self.expression(binds if token.text in _RIGHT else binds + 1)
                self.counted()
                left = Binary(token.offset, token.text, left, right)
                if negated:
                    self.counted()
                    left = Unary(token.offset, "not", left)
            previous = token.text
        return self.conditional(left) if precedence == 0 else left

    def comparison(self, left: SyntaxNode, token: ExpressionToken, precedence: int) -> SyntaxNode:
        """Read `a < b < c`, which means `a < b && b < c`."""
        whole: SyntaxNode | None = None
        while True:
            right = self.expression(precedence + 1)
            self.counted()
            one = Binary(token.offset, token.text, left, right)
            whole = one if whole is None else Binary(token.offset, "&&", whole, one)
            left = right
            token = self.current
            if token.kind != OPERATOR or token.text not in _COMPARISONS:
                return whole
            self.next()

    def let(self) -> SyntaxNode:
        self.next()
        name = self.expect(IDENTIFIER)
        self.expect(OPERATOR, "=")
        value = self.expression(0)
        self.expect(OPERATOR, ";")
        body = self.sequence()
        self.counted()
        return Let(name.offset, name.text, value, body)

    def if_else(self) -> SyntaxNode:
        offset = self.next().offset
        condition = self.expression(0)
        yes = self.block()
        if not self.current.is_(OPERATOR, "else"):
            raise Fault("an if needs an else", self.current.offset)
        self.next()
        if self.current.is_(OPERATOR, "if"):
            self.nesting += 1
            if self.nesting > MAX_NESTING:
                raise Fault(f"the expression is nested more than {MAX_NESTING} deep", self.current.offset)
            no = self.if_else()
            self.nesting -= 1
        else:
            no = self.block()
        return Conditional(offset, condition, yes, no)

    def block(self) -> SyntaxNode:
        self.expect(BRACKET, "{")
        node = self.sequence()
        self.expect(BRACKET, "}")
        return node

    def conditional(self, node: SyntaxNode) -> SyntaxNode:
        while self.current.is_(OPERATOR, "?"):
            offset = self.next().offset
            if self.current.is_(OPERATOR, ":"):
                self.next()
                yes = node
            else:
                yes = self.expression(0)
                self.expect(OPERATOR, ":")
            no = self.expression(0)
            self.counted()
            node = Conditional(offset, node, yes, no)
        return node

    def primary(self) -> SyntaxNode:
        token = self.current
        if token.kind == OPERATOR:
            binds = _UNARY.get(token.text)
            if binds is not None:
                self.next()
                operand = self.expression(binds)
                self.counted()
                return self.postfix(Unary(token.offset, token.text, operand))
            if self.predicates and token.text in ("#", "."):
                name = ""
                if token.text == "#":
                    self.next()
                    if self.current.kind == IDENTIFIER:
                        name = self.next().text
                self.counted()
                return self.postfix(Pointer(token.offset, name))
            if token.text == "::":
                self.next()
                return self.postfix(self.call(self.expect(IDENTIFIER), []))
        elif token.is_(BRACKET, "("):
            self.next()
            node = self.sequence()
            self.expect(BRACKET, ")")
            return self.postfix(node)
        return self.secondary()

    def secondary(self) -> SyntaxNode:
        token = self.current
        if token.kind == IDENTIFIER:
            self.next()
            if token.text in _CONSTANTS:
                self.counted()
                return Literal(token.offset, _CONSTANTS[token.text])
            if self.current.is_(BRACKET, "("):
                return self.postfix(self.call(token, []))
            self.counted()
            return self.postfix(Name(token.offset, token.text))
        if token.kind == NUMBER:
            self.next()
            self.counted()
            return Literal(token.offset, number_of(token))
        if token.kind == STRING:
            self.next()
            self.counted()
            return self.postfix(Literal(token.offset, token.text))
        if token.is_(BRACKET, "["):
            return self.postfix(self.array())
        if token.is_(BRACKET, "{"):
            return self.postfix(self.mapping())
        raise self.unexpected()

    def call(self, name: ExpressionToken, arguments: list[SyntaxNode]) -> SyntaxNode:
        """Read the arguments of a call; those before a pipe are there already."""
        signature = PREDICATES.get(name.text)
        if signature is not None:
            return self.predicate_call(name, arguments, signature[len(arguments) :])
        arguments = self.arguments(arguments)
        self.counted()
        if name.text in self.builtins:
            return Builtin(name.offset, name.text, arguments)
        return Call(name.offset, Name(name.offset, name.text), arguments)

    def predicate_call(
        self, name: ExpressionToken, arguments: list[SyntaxNode], signature: tuple[tuple[str, bool], ...]
    ) -> SyntaxNode:
        self.expect(BRACKET, "(")
        for index, (kind, required) in enumerate(signature):
            if self.current.is_(BRACKET, ")"):
                if required:
                    raise Fault(f"{name.text}() needs more arguments", self.current.offset)
                break
            if index:
                self.expect(OPERATOR, ",")
            arguments.append(self.expression(0) if kind == VALUE else self.predicate())
        if self.current.is_(OPERATOR, ","):
            self.next()
        self.expect(BRACKET, ")")
        self.counted()
        return Builtin(name.offset, name.text, arguments)

    def predicate(self) -> SyntaxNode:
        offset = self.current.offset
        braces = self.current.is_(BRACKET, "{")
        self.predicates += 1
        if braces:
            self.next()
            body = self.sequence()
            self.expect(BRACKET, "}")
        else:
            body = self.expression(0)
            if self.current.is_(OPERATOR, ";"):
                raise Fault("put the predicate into { and }", self.current.offset)
        self.predicates -= 1
        self.counted()
        return Predicate(offset, body)

    def arguments(self, found: list[SyntaxNode]) -> list[SyntaxNode]:
        self.expect(BRACKET, "(")
        before = len(found)
        while not self.current.is_(BRACKET, ")"):
            if len(found) > before:
                self.expect(OPERATOR, ",")
                if self.current.is_(BRACKET, ")"):
                    break
            found.append(self.expression(0))
        self.next()
        return found

    def array(self) -> SyntaxNode:
        offset = self.next().offset
        nodes: list[SyntaxNode] = []
        while not self.current.is_(BRACKET, "]"):
            if nodes:
                self.expect(OPERATOR, ",")
                if self.current.is_(BRACKET, "]"):
                    break
            nodes.append(self.expression(0))
        self.next()
        self.counted()
        return Array(offset, nodes)

    def mapping(self) -> SyntaxNode:
        offset = self.next().offset
        pairs: list[tuple[SyntaxNode, SyntaxNode]] = []
        while not self.current.is_(BRACKET, "}"):
            if pairs:
                self.expect(OPERATOR, ",")
                if self.current.is_(BRACKET, "}"):
                    break
            key: SyntaxNode
            if self.current.kind in (NUMBER, STRING, IDENTIFIER):
                token = self.next()
                self.counted()
                key = Literal(token.offset, token.text)
            elif self.current.is_(BRACKET, "("):
                key = self.expression(0)
            else:
                raise Fault(
                    "a key of a map is a name, a string, a number, or an expression in parentheses",
                    self.current.offset,
                )
            self.expect(OPERATOR, ":")
            pairs.append((key, self.expression(0)))
            self.counted()
        self.next()
        self.counted()
        return Mapping(offset, pairs)

    def postfix(self, node: SyntaxNode) -> SyntaxNode:
        while True:
            token = self.current
            optional = token.is_(OPERATOR, "?.")
            if optional and self.following.is_(BRACKET, "["):
                self.next()
                node = self.index(node, optional=True)
            elif optional or token.is_(OPERATOR, "."):
                self.next()
                node = self.property(node, optional)
            elif token.is_(BRACKET, "["):
                node = self.index(node, optional=False)
            else:
                return node

    def property(self, node: SyntaxNode, optional: bool) -> SyntaxNode:
        name = self.current
        if name.kind != IDENTIFIER and not (name.kind == OPERATOR and lexer.is_identifier(name.text)):
            raise Fault("a name is missing behind the point", name.offset)
        self.next()
        self.counted()
        chained = isinstance(node, Chain)
        if isinstance(node, Chain):
            node = node.node
        self.counted()
        node = MemberAccess(name.offset, node, Literal(name.offset, name.text), optional)
        if self.current.is_(BRACKET, "("):
            node = Call(name.offset, node, self.arguments([]))
            self.counted()
        if chained or optional:
            node = Chain(name.offset, node)
            self.counted()
        return node

    def index(self, node: SyntaxNode, *, optional: bool) -> SyntaxNode:
        """Read `[key]` or `[start:stop]`."""
        offset = self.next().offset
        start = None if self.current.is_(OPERATOR, ":") else self.expression(0)
        if self.current.is_(OPERATOR, ":"):
            self.next()
            stop = None if self.current.is_(BRACKET, "]") else self.expression(0)
            node = Slice(offset, node, start, stop)
        else:
            assert start is not None
            node = MemberAccess(offset, node, start, optional)
            if optional:
                node = Chain(offset, node)
                self.counted()
        self.counted()
        self.expect(BRACKET, "]")
        return node


_CONSTANTS: Final[dict[str, bool | None]] = {"true": True, "false": False, "nil": None}


def number_of(token: ExpressionToken) -> int | float:
    """Return the value of a number; faults for one without digits, or out of range."""
    text = token.text.replace("_", "").lower()
    try:
        number: int | float
        if text.startswith("0x"):
            number = int(text, 16)
        elif "." in text or "e" in text:
            number = float(text)
        elif text.startswith("0b"):
            number = int(text, 2)
        elif text.startswith("0o"):
            number = int(text, 8)
        elif len(text) > 100:
            raise Fault(f"{token.text[:20]}... is too large for an int", token.offset)
        else:
            number = int(text, 10)
    except ValueError:
        raise Fault(f"{token.text[:40]!r} is no number", token.offset) from None
    if isinstance(number, float):
        if number in (float("inf"), float("-inf")):
            raise Fault(f"{token.text[:40]} is too large for a float", token.offset)
    elif number > _MOST_INT:
        raise Fault(f"{token.text[:40]} is too large for an int", token.offset)
    return number
