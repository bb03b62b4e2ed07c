"""Prints values as Go's fmt does: Sprint, Sprintln and Sprintf.

Every verb, flag, width, precision and argument index of Sprintf is here for the types of values.py,
with the forms for mistakes, like `%!d(string=x)`. One thing is refused: `%p` of a list or a map,
which Go prints as an address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from aether_trio.model.templates.budget import BYTES_PER_OPERATION, Meter
from aether_trio.model.templates.errors import RenderFault
from aether_trio.model.templates.floats import format_float, shortest_float
from aether_trio.model.templates.quoting import can_backquote, quote, quote_character, valid_character
from aether_trio.model.templates.values import Uint8, from_data, sorted_keys, to_bytes, type_name

MAX_DATA_DEPTH: Final = 200
"""How deep lists and maps may be within each other where they are printed."""

_MOST_WIDTH: Final = 1_000_000  # of a width or precision, as in Go
_ALL_64_BITS: Final = (1 << 64) - 1
_DIGIT_FORMS: Final = {2: "b", 8: "o", 10: "d", 16: "x"}
_FLOAT_PRECISION: Final = {"v": -1, "b": -1, "g": -1, "G": -1, "x": -1, "X": -1, "f": 6, "F": 6, "e": 6, "E": 6}
_CHARGED_AT: Final = 8 * BYTES_PER_OPERATION
_PIECE: Final = 80  # what each piece of a list or map costs, in bytes, beside its text


def sprint(values: Sequence[object], meter: Meter) -> str:
    """Return values in their default form; a space is between two that are no strings."""
    if len(values) == 1:
        return sprint_one(values[0], meter)
    printer = _Printer(meter)
    after_string = False
    for index, value in enumerate(values):
        is_string = type(value) is str
        if index and not is_string and not after_string:
            printer.emit(" ")
        printer.print_argument(value, "v")
        after_string = is_string
    return printer.text()


def sprint_one(value: object, meter: Meter) -> str:
    """Return one value in its default form, `%v`."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[return-value] # it is one
    if kind is float:
        return shortest_float(value)  # type: ignore[arg-type] # it is one
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    printer = _Printer(meter)
    printer.print_argument(value, "v")
    return printer.text()


def sprintln(values: Sequence[object], meter: Meter) -> str:
    """Return values in their default form, with spaces between and a newline after."""
    printer = _Printer(meter)
    for index, value in enumerate(values):
        if index:
            printer.emit(" ")
        printer.print_argument(value, "v")
    printer.emit("\n")
    return printer.text()


def sprintf(form: str, values: Sequence[object], meter: Meter) -> str:
    """Return values in the form that a format string asks for."""
    printer = _Printer(meter)
    _Format(form, values, printer).run()
    return printer.text()


class _Printer:
    """The pieces of the text so far, and the flags of the verb that is being printed."""

    __slots__ = (
        "_depth",
        "_meter",
        "_pending",
        "_pieces",
        "minus",
        "plus",
        "plus_v",
        "precision",
        "sharp",
        "sharp_v",
        "space",
        "width",
        "zero",
    )

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pieces: list[str] = []
        self._pending = 0
        self._depth = 0
        self.clear_flags()

    def clear_flags(self) -> None:
        self.width: int | None = None
        self.precision: int | None = None
        self.minus = self.plus = self.sharp = self.space = self.zero = False
        self.plus_v = self.sharp_v = False

    def text(self) -> str:
        self._meter.charge_text(self._pending)
        return "".join(self._pieces)

    def charge(self, operations: int) -> None:
        self._meter.charge(operations)

    def emit(self, piece: str) -> None:
        """Append a piece, and charge for it."""
        self._pieces.append(piece)
        self._pending += len(piece) + _PIECE
        if self._pending >= _CHARGED_AT:
            self._meter.charge_text(self._pending)
            self._pending = 0

    # Padding

    def _padding(self, count: int) -> str:
        if count <= 0:
            return ""
        if count > BYTES_PER_OPERATION:
            self._meter.charge_text(count)
        return ("0" if self.zero and not self.minus else " ") * count

    def _pad(self, piece: str) -> None:
        """Append a piece, padded to the width."""
        if self.width:
            padding = self._padding(self.width - len(piece))
            piece = piece + padding if self.minus else padding + piece
        self.emit(piece)

    def _pad_with_spaces(self, piece: str) -> None:
        zero, self.zero = self.zero, False
        self._pad(piece)
        self.zero = zero

    # Arguments

    def print_argument(self, value: object, verb: str) -> None:
        """Append an argument in the form of a verb."""
        if value is None:
            if verb in "Tv":
                self._pad("<nil>")
            else:
                self._bad_verb(value, verb)
        elif verb == "T":
            self._string(type_name(value), "s")
        elif verb == "p":
            if isinstance(value, list | dict):
                raise RenderFault("%p of a list or map is an address, which templates do not print")
            self._bad_verb(value, verb)
        elif verb == "w" and isinstance(value, list | dict):
            self._bad_verb(value, verb)
        else:
            self._value(value, verb)

    def _bad_verb(self, value: object, verb: str) -> None:
        """Append the form for a verb that a value does not have."""
        self.emit(f"%!{verb}({type_name(value)}{'' if value is None else '='}")
        if value is not None:
            self._value(value, "v")
        self.emit(")")

    def _value(self, value: object, verb: str) -> None:
        print_as = _PRINTERS.get(type(value))
        if print_as is None:
            raise RenderFault(f"a value of type {type(value).__name__} cannot be printed")
        print_as(self, value, verb)

    def _bool(self, value: bool, verb: str) -> None:
        if verb in "tv":
            self._pad("true" if value else "false")
        else:
            self._bad_verb(value, verb)

    def _element(self, value: object, verb: str) -> None:
        value = from_data(value)
        if value is None:
            self.emit("interface {}(nil)" if self.sharp_v else "<nil>")
        else:
            self._value(value, verb)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DATA_DEPTH:
            raise RenderFault(f"the data are nested more than {MAX_DATA_DEPTH} deep")

    def _list(self, value: list[object], verb: str) -> None:
        self._deeper()
        self.emit("[]interface {}{" if self.sharp_v else "[")
        for index, element in enumerate(value):
            if index:
                self.emit(", " if self.sharp_v else " ")
            self._element(element, verb)
        self.emit("}" if self.sharp_v else "]")
        self._depth -= 1

    def _map(self, value: dict[object, object], verb: str) -> None:
        self._deeper()
        self.emit("map[string]interface {}{" if self.sharp_v else "map[")
        self._meter.charge(len(value) >> 3)
        for index, key in enumerate(sorted_keys(value)):
            if index:
                self.emit(", " if self.sharp_v else " ")
            self._string(key, verb)
            self.emit(":")
            self._element(value[key], verb)
        self.emit("}" if self.sharp_v else "]")
        self._depth -= 1

    # Strings

    def _string(self, value: str, verb: str) -> None:
        if verb == "q" or (verb == "v" and self.sharp_v):
            self._quoted(value)
        elif verb in "vs":
            self._pad(self._truncated(value))
        elif verb in "xX":
            self._hexadecimal_string(value, verb)
        else:
            self._bad_verb(value, verb)

    def _truncated(self, value: str) -> str:
        return value if self.precision is None else value[: self.precision]

    def _quoted(self, value: str) -> None:
        value = self._truncated(value)
        if self.sharp and can_backquote(value):
            self._pad(f"`{value}`")
        else:
            self._pad(quote(value, self._meter, ascii_only=self.plus))

    def _hexadecimal_string(self, value: str, verb: str) -> None:
        self._meter.charge_text(len(value))
        raw = to_bytes(value)[: self.precision]
        if not raw:
            self.emit(self._padding(self.width or 0))
            return
        digits = raw.hex(" ") if self.space else raw.hex()
        prefix = "0x" if self.sharp else ""
        digits = prefix + digits.replace(" ", f" {prefix}")
        if verb == "X":
            digits = digits.upper()
        self._pad(digits)

    # Numbers

    def _integer(self, value: int, verb: str) -> None:
        signed = type(value) is not Uint8
        match verb:
            case "v" if self.sharp_v and not signed:
                self.sharp = True
                self._digits(value, 16, "v", signed=False)
                self.sharp = False
            case "v" | "d":
                self._digits(value, 10, verb, signed=signed)
            case "b":
                self._digits(value, 2, verb, signed=signed)
            case "o" | "O":
                self._digits(value, 8, verb, signed=signed)
            case "x" | "X":
                self._digits(value, 16, verb, signed=signed)
            case "c":
                self._pad(chr(valid_character(value)))
            case "q":
                self._pad(quote_character(value, ascii_only=self.plus))
            case "U":
                self._unicode(value & _ALL_64_BITS)
            case _:
                self._bad_verb(value, verb)

    def _digits(self, value: int, base: int, verb: str, *, signed: bool) -> None:
        negative = signed and value < 0
        precision = 0
        if self.precision is not None:
            precision = self.precision
            if not precision and not value:
                zero, self.zero = self.zero, False
                self.emit(self._padding(self.width or 0))
                self.zero = zero
                return
        elif self.zero and not self.minus and self.width is not None:
            precision = self.width - (negative or self.plus or self.space)
        digits = format(abs(value), _DIGIT_FORMS[base])
        if verb == "X":
            digits = digits.upper()
        if precision > len(digits):
            self._meter.charge_text(precision)
            digits = digits.rjust(precision, "0")
        if self.sharp:
            if base == 2:
                digits = "0b" + digits
            elif base == 8:
                digits = digits if digits[0] == "0" else "0" + digits
            elif base == 16:
                digits = ("0X" if verb == "X" else "0x") + digits
        if verb == "O":
            digits = "0o" + digits
        sign = "-" if negative else "+" if self.plus else " " if self.space else ""
        self._pad_with_spaces(sign + digits)

    def _unicode(self, code: int) -> None:
        precision = max(4, self.precision or 0)
        self._meter.charge_text(precision)
        text = f"U+{code:0{precision}X}"
        if self.sharp and code <= 0x10FFFF and chr(code).isprintable():
            text += f" '{chr(code)}'"
        self._pad_with_spaces(text)

    def _float(self, value: float, verb: str) -> None:
        default = _FLOAT_PRECISION.get(verb)
        if default is None:
            self._bad_verb(value, verb)
            return
        form = {"v": "g", "F": "f"}.get(verb, verb)
        precision = default if self.precision is None else self.precision
        if precision > BYTES_PER_OPERATION:
            self._meter.charge_text(precision)
        text = format_float(value, form, precision)
        if text[0] not in "+-":
            text = "+" + text
        if self.space and text[0] == "+" and not self.plus:
            text = " " + text[1:]
        if text[1] in "IN":
            if text[1] == "N" and not self.space and not self.plus:
                text = text[1:]
            self._pad_with_spaces(text)
            return
        if self.sharp and form != "b":
            text = self._with_point(text, form, precision)
        if not self.plus and text[0] == "+":
            self._pad(text[1:])
        elif self.zero and not self.minus and self.width is not None and self.width > len(text):
            self.emit(text[0] + self._padding(self.width - len(text)) + text[1:])
        else:
            self._pad(text)

    def _with_point(self, text: str, verb: str, precision: int) -> str:
        """Return a float's text with a decimal point and the zeros that `#` keeps."""
        digits = 0
        if verb in "gGx":
            digits = 6 if precision == -1 else precision
        tail_at = len(text)
        has_point = saw_digit = False
        for index in range(1, len(text)):
            mark = text[index]
            if mark == ".":
                has_point = True
            elif mark in "pP" or (mark in "eE" and verb not in "xX"):
                tail_at = index
                break
            else:
                saw_digit = saw_digit or mark != "0"
                digits -= saw_digit
        number, tail = text[:tail_at], text[tail_at:]
        if not has_point:
            if len(number) == 2 and number[1] == "0":
                digits -= 1
            number += "."
        return number + "0" * max(digits, 0) + tail

    def _complex(self, value: complex, verb: str) -> None:
        if verb not in _FLOAT_PRECISION:
            self._bad_verb(value, verb)
            return
        plus = self.plus
        self.emit("(")
        self._float(value.real, verb)
        self.plus = True
        self._float(value.imag, verb)
        self.emit("i)")
        self.plus = plus


_PRINTERS: Final[dict[type, Callable[[_Printer, Any, str], None]]] = {
    str: _Printer._string,
    float: _Printer._float,
    bool: _Printer._bool,
    int: _Printer._integer,
    Uint8: _Printer._integer,
    complex: _Printer._complex,
    list: _Printer._list,
    dict: _Printer._map,
}


class _Format:
    """One reading of a format string."""

    __slots__ = ("_after_index", "_argument", "_form", "_good", "_place", "_printer", "_reordered", "_values")

    def __init__(self, form: str, values: Sequence[object], printer: _Printer) -> None:
        self._form = form
        self._values = values
        self._printer = printer
        self._place = 0
        self._argument = 0
        self._reordered = self._after_index = False
        self._good = True

    def run(self) -> None:
        form, printer, end = self._form, self._printer, len(self._form)
        while self._place < end:
            printer.charge(1)
            percent = form.find("%", self._place)
            if percent < 0:
                printer.emit(form[self._place :])
                break
            if percent > self._place:
                printer.emit(form[self._place : percent])
            self._place = percent + 1
            self._good = True
            self._flags()
            self._index()
            self._width()
            self._precision()
            if not self._after_index:
                self._index()
            if self._place >= end:
                printer.emit("%!(NOVERB)")
                break
            verb = form[self._place]
            self._place += 1
            self._verb("\ufffd" if "\ud800" <= verb <= "\udfff" else verb)
        if not self._reordered and self._argument < len(self._values):
            self._extra()

    def _flags(self) -> None:
        printer, form = self._printer, self._form
        printer.clear_flags()
        while self._place < len(form):
            match form[self._place]:
                case "#":
                    printer.sharp = True
                case "0":
                    printer.zero = True
                case "+":
                    printer.plus = True
                case "-":
                    printer.minus = True
                case " ":
                    printer.space = True
                case _:
                    return
            self._place += 1

    def _number(self) -> int | None:
        """Read decimal digits; a number far too long ends the format, as in Go."""
        form = self._form
        start, number = self._place, 0
        while self._place < len(form) and "0" <= form[self._place] <= "9":
            if number > _MOST_WIDTH:
                self._place = len(form)
                return None
            number = number * 10 + ord(form[self._place]) - ord("0")
            self._place += 1
        return number if self._place > start else None

    def _index(self) -> None:
        """Read the index of an argument, `[2]`, if there is one."""
        form, start = self._form, self._place
        self._after_index = False
        if not form.startswith("[", start):
            return
        self._reordered = True
        close = form.find("]", start + 1)
        if close < 0 or len(form) - start < 3:
            self._good = False
            self._place = start + 1
            return
        self._place = close + 1
        digits = form[start + 1 : close]
        if not (digits.isascii() and digits.isdigit()) or int(digits[:-1][-20:] or 0) > _MOST_WIDTH:
            self._good = False
            return
        self._after_index = True
        index = int(digits) - 1
        if 0 <= index < len(self._values):
            self._argument = index
        else:
            self._good = False

    def _star(self) -> int | None:
        """Take a width or precision from the arguments; None if it is no usable int."""
        number = None
        if self._argument < len(self._values):
            value = self._values[self._argument]
            self._argument += 1
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST_WIDTH:
                number = int(value)
        return number

    def _width(self) -> None:
        printer = self._printer
        if self._form.startswith("*", self._place):
            self._place += 1
            printer.width = self._star()
            if printer.width is None:
                printer.emit("%!(BADWIDTH)")
            elif printer.width < 0:
                printer.width = -printer.width
                printer.minus = True
                printer.zero = False
            self._after_index = False
        else:
            printer.width = self._number()
            if self._after_index and printer.width is not None:
                self._good = False

    def _precision(self) -> None:
        printer = self._printer
        if not self._form.startswith(".", self._place) or self._place + 1 >= len(self._form):
            return
        self._place += 1
        if self._after_index:
            self._good = False
        self._index()
        if self._form.startswith("*", self._place):
            self._place += 1
            printer.precision = self._star()
            if printer.precision is not None and printer.precision < 0:
                printer.precision = None
            if printer.precision is None:
                printer.emit("%!(BADPREC)")
            self._after_index = False
        else:
            number = self._number()
            printer.precision = 0 if number is None else number

    def _verb(self, verb: str) -> None:
        printer = self._printer
        if verb == "%":
            printer.emit("%")
        elif not self._good:
            printer.emit(f"%!{verb}(BADINDEX)")
        elif self._argument >= len(self._values):
            printer.emit(f"%!{verb}(MISSING)")
        else:
            if verb in "vw":
                printer.sharp_v, printer.sharp = printer.sharp, False
                printer.plus_v, printer.plus = printer.plus, False
            printer.print_argument(self._values[self._argument], verb)
            self._argument += 1

    def _extra(self) -> None:
        """Append the arguments that no verb has used."""
        printer = self._printer
        printer.clear_flags()
        printer.emit("%!(EXTRA ")
        for index, value in enumerate(self._values[self._argument :]):
            if index:
                printer.emit(", ")
            printer.emit(type_name(value))
            if value is not None:
                printer.emit("=")
                printer.print_argument(value, "v")
        printer.emit(")")
