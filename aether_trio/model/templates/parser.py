"""Parses tokens into trees, one for each template that a source defines.

What Go's parser accepts is accepted and the rest is refused, at the first error. Control structures
and parentheses may be nested MAX_NESTING deep.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Final, Literal, TypeVar, cast

from aether_trio.model.templates.errors import RenderFault
from aether_trio.model.templates.functions import FUNCTIONS
from aether_trio.model.templates.lexer import Lexeme, TemplateToken, tokenize
from aether_trio.model.templates.literals import (
    LiteralError,
    parse_complex,
    parse_number,
    unquote,
    unquote_character,
)
from aether_trio.model.templates.nodes import (
    BodyNode,
    BranchAction,
    ChainWord,
    ConstantWord,
    DotWord,
    FieldWord,
    FunctionWord,
    JumpAction,
    LiteralText,
    LoopAction,
    NilWord,
    NodeList,
    PrintAction,
    TemplateAction,
    TemplateCommand,
    TemplatePipeline,
    VariableWord,
    Word,
)
from aether_trio.model.templates.variables import VariableStack
from aether_trio.model.text import shown

_Read = TypeVar("_Read")

MAX_NESTING: Final = 64
"""How deep control structures and parentheses may be within each other in a source."""

_STARTS_A_WORD: Final = frozenset(
    {
        Lexeme.BOOL,
        Lexeme.CHARACTER,
        Lexeme.COMPLEX,
        Lexeme.DOT,
        Lexeme.FIELD,
        Lexeme.NAME,
        Lexeme.NUMBER,
        Lexeme.NIL,
        Lexeme.STRING,
        Lexeme.VARIABLE,
        Lexeme.OPEN,
    }
)

_GO_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


def parse_templates(source: str, name: str) -> dict[str, NodeList]:
    """Return the trees of a source by name: its own as `name`, and those it defines.

    RenderFault, with its offset, says where the source is malformed.
    """
    return _TemplateParser(source).parse(name)


def _is_empty(body: NodeList) -> bool:
    """Return whether a tree has nothing but white space, so that it defines nothing."""
    return all(isinstance(node, LiteralText) and not node.text.strip(_GO_SPACE) for node in body.nodes)


def _unknown_function(name: str) -> str:
    close = get_close_matches(name, FUNCTIONS, 1, 0.75)
    hint = f"did you mean {close[0]!r}?" if close else f"a field is written with a dot: .{name[:40]}"
    return f"function {shown(name)} not defined; {hint}"


class _Ending:
    """What ended a list of nodes: `end` or `else`, and the token after the word."""

    __slots__ = ("offset", "word")

    def __init__(self, word: str, offset: int) -> None:
        self.word = word
        self.offset = offset


class _TemplateParser:
    """A recursive descent parser over the list of tokens."""

    def __init__(self, source: str) -> None:
        self._tokens = tokenize(source)
        self._place = 0
        self._variables = VariableStack(None)
        self._loops = 0
        self._depth = 0
        self._trees: dict[str, NodeList] = {}

    def parse(self, name: str) -> dict[str, NodeList]:
        nodes: list[BodyNode] = []
        while (token := self._peek()).kind is not Lexeme.END:
            if token.kind is Lexeme.LEFT:
                start = self._place
                self._place += 1
                word = self._next_word()
                if word.kind is Lexeme.KEYWORD and word.text == "define":
                    self._define()
                    continue
                self._place = start
            node = self._text_or_action()
            if isinstance(node, _Ending):
                raise RenderFault(f"unexpected {{{{{node.word}}}}}", node.offset)
            nodes.append(node)
        self._add(name, NodeList(0, tuple(nodes)), 0)
        return self._trees

    # Tokens

    def _peek(self) -> TemplateToken:
        return self._tokens[self._place]

    def _next(self) -> TemplateToken:
        token = self._tokens[self._place]
        if token.kind is not Lexeme.ERROR and token.kind is not Lexeme.END:
            self._place += 1
        return token

    def _next_word(self) -> TemplateToken:
        """Return the next token that is no space, and step over it."""
        while (token := self._next()).kind is Lexeme.SPACE:
            pass
        return token

    def _peek_word(self) -> TemplateToken:
        """Step over spaces, and return the token after them."""
        while (token := self._peek()).kind is Lexeme.SPACE:
            self._place += 1
        return token

    def _expect(self, kind: Lexeme, context: str) -> TemplateToken:
        token = self._next_word()
        if token.kind is not kind:
            raise self._unexpected(token, context)
        return token

    def _unexpected(self, token: TemplateToken, context: str) -> RenderFault:
        if token.kind is Lexeme.ERROR:
            return RenderFault(token.text, token.offset)
        what = token.kind.value if token.kind in {Lexeme.END, Lexeme.SPACE} else shown(token.text)
        return RenderFault(f"unexpected {what} in {context}", token.offset)

    def _deeper(self, offset: int) -> None:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise RenderFault(f"control structures and parentheses are nested more than {MAX_NESTING} deep", offset)

    # Lists of nodes

    def _body(self) -> tuple[NodeList, _Ending]:
        """Parse nodes up to `end` or `else`."""
        nodes: list[BodyNode] = []
        offset = self._peek_word().offset
        while self._peek_word().kind is not Lexeme.END:
            node = self._text_or_action()
            if isinstance(node, _Ending):
                return NodeList(offset, tuple(nodes)), node
            nodes.append(node)
        raise RenderFault("unexpected end of the template: {{end}} is missing", self._peek().offset)

    def _text_or_action(self) -> BodyNode | _Ending:
        token = self._next_word()
        if token.kind is Lexeme.TEXT:
            return LiteralText(token.offset, token.text)
        if token.kind is Lexeme.LEFT:
            return self._action()
        raise self._unexpected(token, "input")

    def _action(self) -> BodyNode | _Ending:
        token = self._peek_word()
        if token.kind is Lexeme.KEYWORD:
            self._next()
            match token.text:
                case "if" | "with":
                    return self._branch(token)
                case "range":
                    return self._loop(token)
                case "template":
                    return self._invocation(token)
                case "block":
                    return self._block(token)
                case "end":
                    self._expect(Lexeme.RIGHT, "end")
                    return _Ending("end", token.offset)
                case "else":
                    following = self._peek_word()
                    if not (following.kind is Lexeme.KEYWORD and following.text in {"if", "with"}):
                        self._expect(Lexeme.RIGHT, "else")
                    return _Ending("else", token.offset)
                case "break" | "continue":
                    return self._jump(token)
            raise self._unexpected(token, "command")
        return PrintAction(token.offset, self._pipeline("command", Lexeme.RIGHT))

    def _jump(self, token: TemplateToken) -> JumpAction:
        self._expect(Lexeme.RIGHT, f"{{{{{token.text}}}}}")
        if not self._loops:
            raise RenderFault(f"{{{{{token.text}}}}} outside {{{{range}}}}", token.offset)
        return JumpAction(token.offset, cast("Literal['break', 'continue']", token.text))

    def _branch(self, start: TemplateToken) -> BranchAction:
        """Parse `if` or `with`; `else if` continues the same chain."""
        mark = self._variables.mark()
        self._deeper(start.offset)
        clauses: list[tuple[TemplatePipeline, NodeList]] = []
        otherwise = None
        while True:
            pipeline = self._pipeline(start.text, Lexeme.RIGHT)
            body, ending = self._body()
            clauses.append((pipeline, body))
            if ending.word == "end":
                break
            following = self._peek()
            if following.kind is Lexeme.KEYWORD and following.text == start.text:
                self._next()
                continue
            otherwise = self._else_body()
            break
        self._depth -= 1
        self._variables.forget(mark)
        return BranchAction(start.offset, cast("Literal['if', 'with']", start.text), tuple(clauses), otherwise)

    def _else_body(self) -> NodeList:
        body, ending = self._body()
        if ending.word != "end":
            raise RenderFault("expected end; found {{else}}", ending.offset)
        return body

    def _loop(self, start: TemplateToken) -> LoopAction:
        mark = self._variables.mark()
        self._deeper(start.offset)
        pipeline = self._pipeline("range", Lexeme.RIGHT)
        self._loops += 1
        body, ending = self._body()
        self._loops -= 1
        otherwise = self._else_body() if ending.word == "else" else None
        self._depth -= 1
        self._variables.forget(mark)
        return LoopAction(start.offset, pipeline, body, otherwise)

    # Named templates

    def _template_name(self, context: str) -> str:
        token = self._expect(Lexeme.STRING, context)
        return self._constant(token, unquote)

    def _define(self) -> None:
        offset = self._peek().offset
        name = self._template_name("define clause")
        self._expect(Lexeme.RIGHT, "define clause")
        self._named_body(name, "define clause", offset)

    def _block(self, start: TemplateToken) -> TemplateAction:
        name = self._template_name("block clause")
        pipeline = self._pipeline("block clause", Lexeme.RIGHT)
        self._named_body(name, "block clause", start.offset)
        return TemplateAction(start.offset, name, pipeline)

    def _named_body(self, name: str, context: str, offset: int) -> None:
        """Parse the body of a template, which has variables and loops apart from these."""
        outside = self._variables, self._loops
        self._variables, self._loops = VariableStack(None), 0
        self._deeper(offset)
        body, ending = self._body()
        if ending.word != "end":
            raise RenderFault(f"unexpected {{{{else}}}} in {context}", ending.offset)
        self._depth -= 1
        self._variables, self._loops = outside
        self._add(name, body, offset)

    def _add(self, name: str, body: NodeList, offset: int) -> None:
        earlier = self._trees.get(name)
        if earlier is None or _is_empty(earlier):
            self._trees[name] = body
        elif not _is_empty(body):
            raise RenderFault(f"multiple definition of template {shown(name)}", offset)

    def _invocation(self, start: TemplateToken) -> TemplateAction:
        name = self._template_name("template clause")
        pipeline = None
        if self._peek_word().kind is Lexeme.RIGHT:
            self._next()
        else:
            pipeline = self._pipeline("template clause", Lexeme.RIGHT)
        return TemplateAction(start.offset, name, pipeline)

    # Pipelines

    def _pipeline(self, context: str, end: Lexeme) -> TemplatePipeline:
        offset = self._peek_word().offset
        declared, assigns = self._declarations(context)
        commands: list[TemplateCommand] = []
        while (token := self._peek_word()).kind is not end:
            if token.kind not in _STARTS_A_WORD:
                raise self._unexpected(token, context)
            commands.append(self._command())
        self._next()
        if not commands:
            raise RenderFault(f"missing value for {context}", offset)
        for number, command in enumerate(commands[1:], 2):
            if isinstance(command.words[0], DotWord | NilWord | ConstantWord):
                raise RenderFault(f"non executable command in pipeline stage {number}", command.offset)
        return TemplatePipeline(offset, tuple(declared), assigns, tuple(commands))

    def _declarations(self, context: str) -> tuple[list[str], bool]:
        """Parse variables up to `:=` or `=`; the place stays if there are none."""
        declared: list[str] = []
        while (variable := self._peek_word()).kind is Lexeme.VARIABLE:
            start = self._place
            self._next()
            following = self._peek_word()
            if following.kind is Lexeme.ASSIGN or following.kind is Lexeme.DECLARE:
                self._next()
                declared.append(variable.text)
                self._variables.declare(variable.text, None)
                return declared, following.kind is Lexeme.ASSIGN
            if following.kind is not Lexeme.MARK or following.text != ",":
                self._place = start
                return declared, False
            self._next()
            declared.append(variable.text)
            self._variables.declare(variable.text, None)
            if context != "range" or len(declared) > 1:
                raise RenderFault(f"too many declarations in {context}", following.offset)
            if self._peek_word().kind not in {Lexeme.VARIABLE, Lexeme.RIGHT, Lexeme.CLOSE}:
                raise RenderFault("range can only initialize variables", self._peek().offset)
        return declared, False

    def _command(self) -> TemplateCommand:
        offset = self._peek_word().offset
        words: list[Word] = []
        while True:
            self._peek_word()
            word = self._operand()
            if word is not None:
                words.append(word)
            token = self._next()
            if token.kind is Lexeme.SPACE:
                continue
            if token.kind is Lexeme.RIGHT or token.kind is Lexeme.CLOSE:
                self._place -= 1
            elif token.kind is not Lexeme.PIPE:
                raise self._unexpected(token, "operand")
            break
        if not words:
            raise RenderFault("empty command", offset)
        return TemplateCommand(offset, tuple(words))

    def _operand(self) -> Word | None:
        """Parse a term and the fields after it; None if there is no term."""
        start = self._peek()
        word = self._term()
        if word is None or self._peek().kind is not Lexeme.FIELD:
            return word
        names: list[str] = []
        offset = self._peek().offset
        while self._peek().kind is Lexeme.FIELD:
            names.append(self._next().text[1:])
        match word:
            case FieldWord():
                return FieldWord(word.offset, (*word.names, *names))
            case VariableWord():
                return VariableWord(word.offset, word.variable, (*word.names, *names))
            case TemplatePipeline() | FunctionWord():
                return ChainWord(offset, word, tuple(names))
        raise RenderFault(f"unexpected . after term {shown(start.text)}", offset)

    def _term(self) -> Word | None:
        token = self._peek_word()
        match token.kind:
            case Lexeme.NAME:
                if token.text not in FUNCTIONS:
                    raise RenderFault(_unknown_function(token.text), token.offset)
                word: Word = FunctionWord(token.offset, token.text)
            case Lexeme.DOT:
                word = DotWord(token.offset)
            case Lexeme.NIL:
                word = NilWord(token.offset)
            case Lexeme.VARIABLE:
                if token.text not in self._variables:
                    raise RenderFault(f"undefined variable {shown(token.text)}", token.offset)
                word = VariableWord(token.offset, token.text, ())
            case Lexeme.FIELD:
                word = FieldWord(token.offset, (token.text[1:],))
            case Lexeme.BOOL:
                word = ConstantWord(token.offset, token.text == "true", token.text)
            case Lexeme.NUMBER:
                word = ConstantWord(token.offset, self._constant(token, parse_number), token.text)
            case Lexeme.COMPLEX:
                word = ConstantWord(token.offset, self._constant(token, parse_complex), token.text)
            case Lexeme.CHARACTER:
                word = ConstantWord(token.offset, self._constant(token, unquote_character), token.text)
            case Lexeme.STRING:
                word = ConstantWord(token.offset, self._constant(token, unquote), token.text)
            case Lexeme.OPEN:
                self._next()
                self._deeper(token.offset)
                word = self._pipeline("parenthesized pipeline", Lexeme.CLOSE)
                self._depth -= 1
                return word
            case _:
                return None
        self._next()
        return word

    def _constant(self, token: TemplateToken, read: Callable[[str], _Read]) -> _Read:
        try:
            return read(token.text)
        except LiteralError as error:
            raise RenderFault(str(error), token.offset) from None
