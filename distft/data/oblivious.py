"""Oblivious templates: those of which Jinja's syntax tree shows that they do not look at what messages say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any

from jinja2 import Environment, TemplateError, nodes

ROLES = frozenset({"system", "user", "assistant"})

_TYPES = {"string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "boolean"}
_NOT_OF_NOTHING = {"string", "defined", "none", "mapping"}  # tests that fail for what is not there


@dataclass(frozen=True)
class Oblivious:
    """What messages must not hold, for a template that looks for it, to be oblivious of all else they say.

    It writes what they say as it is, or without the white space around it, and what it writes around them depends on
    their number, their roles and which of them are empty. Each has one of `ROLES`, a text as its content, and no more.

    Attributes:
        words: not in any message.
        bare: white space at the ends of messages.
    """

    words: frozenset[str]
    bare: bool


class _Kind(IntEnum):
    """What an expression may hold; of two kinds the higher one, if they are below MESSAGE."""

    PLAIN = 0  # nothing that a message says
    CONTENT = 1  # what one message says, with or without the white space around it
    EITHER = 2  # something plain in one case, what one message says in another
    TEXT = 3  # such things one behind the other
    MESSAGE = 4
    MESSAGES = 5
    PIECES = 6  # a list of one of the first three


_SAID = (_Kind.CONTENT, _Kind.EITHER)
_PLAINLY = (nodes.BinExpr, nodes.UnaryExpr, nodes.Slice, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair)
_FINDS = {"startswith": _Kind.PLAIN, "endswith": _Kind.PLAIN, "split": _Kind.PIECES}  # methods, by a word


class _Looks(Exception):
    """The template does something with what a message says that is not known to be harmless."""


def read(template: str) -> Oblivious | None:
    """A template (Jinja text); None: it is not plain to see that it is oblivious."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        body = environment.parse(template).body
    except TemplateError:
        return None
    reader = _Reader()
    try:
        while True:  # a loop may carry what is set at its end to its beginning
            before = dict(reader.names)
            reader.statements(body)
            if reader.names == before:
                return Oblivious(frozenset(reader.words), reader.bare)
    except _Looks:
        return None


class _Reader:
    """Walks a syntax tree.

    Attributes:
        names: what names and attributes ("ns.x") have been seen to hold.
        words, bare: as of `Oblivious`.
    """

    def __init__(self) -> None:
        self.names: dict[str, _Kind] = {"messages": _Kind.MESSAGES}
        self.words: set[str] = set()
        self.bare = False
        self._each = _Kind.PLAIN  # what the loop goes over

    def statements(self, body: Iterable[nodes.Node]) -> None:
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for one in node.nodes:
                    self._kind(one, _Kind.TEXT)
            case nodes.If():
                if not self._is_never(node.test):
                    self._decides(node.test)
                    self.statements(node.body)
                if not self._is_always(node.test):
                    self.statements(chain(node.elif_, node.else_))
            case nodes.For(recursive=False):
                self._loop(node)
            case nodes.Assign():
                self._set(node.target, self._kind(node.node))
            case _ if not isinstance(node, nodes.Break | nodes.Continue):
                raise _Looks

    def _loop(self, node: nodes.For) -> None:
        around, over = self._each, self._kind(node.iter)
        if over not in (_Kind.PLAIN, _Kind.MESSAGES):
            raise _Looks
        self._each = _Kind.MESSAGE if over else _Kind.PLAIN
        self._set(node.target, self._each)
        if node.test is not None:
            self._decides(node.test)
        self.statements(node.body)
        self._each = around
        self.statements(node.else_)

    def _set(self, target: nodes.Node, kind: _Kind) -> None:
        match target:
            case nodes.Name():
                name = target.name
            case nodes.NSRef():
                name = f"{target.name}.{target.attr}"
            case nodes.Tuple() if kind == _Kind.PLAIN:
                for one in target.items:
                    self._set(one, kind)
                return
            case _:
                raise _Looks
        self.names[name] = _either(self.names.get(name, kind), kind)

    def _decides(self, node: nodes.Node) -> None:
        """Of an expression by whose truth the template goes one way or another: a message is empty or not, whether the
        white space around it counts or not."""
        match node:
            case nodes.And() | nodes.Or():
                self._decides(node.left)
                self._decides(node.right)
            case nodes.Not():
                self._decides(node.node)
            case _:
                if self._kind(node) == _Kind.TEXT:
                    raise _Looks

    def _is_never(self, node: nodes.Node) -> bool:
        """Whether a condition is false of all messages that are allowed."""
        match node:
            case nodes.Or():
                return self._is_never(node.left) and self._is_never(node.right)
            case nodes.And():
                return self._is_never(node.left) or self._is_never(node.right)
            case nodes.Compare(expr=nodes.Const() as word, ops=[nodes.Operand(op="in") as one]):
                kind = self._known(one.expr)
                if kind == _Kind.CONTENT:
                    return self._lacks(word)
                return kind == _Kind.MESSAGE and word.value not in ("role", "content")
            case nodes.Compare(ops=[nodes.Operand(op="eq", expr=nodes.Const() as role)]):
                return self._key(node.expr) == "role" and role.value not in ROLES
            case nodes.Call(node=nodes.Getattr(attr="startswith" | "endswith") as method, args=[nodes.Const() as word]):
                return self._known(method.node) == _Kind.CONTENT and self._lacks(word)
            case nodes.Test():
                if self._known(node.node) == _Kind.CONTENT:
                    return node.name in ("none", "mapping")
                return node.name in _NOT_OF_NOTHING and self._is_nothing(node.node)
            case _:
                return self._is_nothing(node)

    def _is_always(self, node: nodes.Node) -> bool:
        """Whether a condition is true of all of them."""
        return isinstance(node, nodes.Test) and node.name in ("string", "defined") and self._key(node.node) == "content"

    def _is_nothing(self, node: nodes.Node) -> bool:
        """Of a key that messages do not have."""
        return self._key(node) not in (None, "role", "content")

    def _key(self, node: nodes.Node) -> Any:
        """Which key of a message an expression is; None: something else."""
        match node:
            case nodes.Getattr(node=whole, attr=key) | nodes.Getitem(node=whole, arg=nodes.Const(value=key)):
                return key if self._known(whole) == _Kind.MESSAGE and key not in dir(dict) else None
        return None

    def _known(self, node: nodes.Node) -> _Kind | None:
        try:
            return self._kind(node)
        except _Looks:
            return None

    def _lacks(self, word: nodes.Const) -> bool:
        """Asks for messages without this word."""
        self.words |= {word.value} if (is_word := isinstance(word.value, str) and word.value != "") else set()
        return is_word

    def _kind(self, node: nodes.Node, most: _Kind = _Kind.PIECES) -> _Kind:
        """What an expression holds. Raises _Looks if it is more than `most`, or depends on what a message says."""
        found = self._expression(node)
        if found > most:
            raise _Looks
        return found

    def _plain(self, *several: nodes.Node) -> _Kind:
        for node in several:
            self._kind(node, _Kind.PLAIN)
        return _Kind.PLAIN

    def _expression(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Const() | nodes.TemplateData():
                return _Kind.PLAIN
            case nodes.Name():
                return self._named(node.name)
            case nodes.Getattr():
                return self._part(node.node, nodes.Const(node.attr))
            case nodes.Getitem():
                return self._part(node.node, node.arg)
            case nodes.Add() | nodes.Concat():
                parts = [self._kind(part, _Kind.TEXT) for part in node.iter_child_nodes()]
                return _Kind.TEXT if max(parts) else _Kind.PLAIN
            case nodes.CondExpr():
                self._decides(node.test)
                kinds = [self._kind(one) for one in (node.expr1, node.expr2) if one is not None]
                return _either(kinds[0], kinds[-1])
            case nodes.And() | nodes.Or():
                return _either(self._kind(node.left, _Kind.EITHER), self._kind(node.right, _Kind.EITHER))
            case nodes.Not():
                self._decides(node.node)
                return _Kind.PLAIN
            case nodes.Compare():
                return self._compared(node)
            case nodes.Test() if node.name in _TYPES and not _arguments(node):
                return min(self._kind(node.node), _Kind.PLAIN)
            case nodes.Test():
                return self._plain(node.node, *_arguments(node))
            case nodes.Filter():
                return self._filtered(node)
            case nodes.Call():
                return self._called(node)
            case _ if isinstance(node, _PLAINLY):
                return self._plain(*node.iter_child_nodes())
            case _:
                raise _Looks

    def _named(self, name: str) -> _Kind:
        """Of a name by itself: not one behind which a message may be, that another name could then hide."""
        if name == "loop" or any(kind and one.startswith(f"{name}.") for one, kind in self.names.items()):
            raise _Looks
        return self.names.get(name, _Kind.PLAIN)

    def _part(self, whole: nodes.Node, key: nodes.Node) -> _Kind:
        known = key.value if isinstance(key, nodes.Const) else None
        if isinstance(whole, nodes.Name) and known is not None:
            if whole.name == "loop":
                return self._each if known in ("previtem", "nextitem") else _Kind.PLAIN
            if (name := f"{whole.name}.{known}") in self.names:
                return self.names[name]
        kind = self._kind(whole)
        if kind == _Kind.MESSAGE and known is not None and known not in dir(dict):
            return _Kind.CONTENT if known == "content" else _Kind.PLAIN
        if kind == _Kind.PIECES and (known == 0 or key == nodes.Neg(nodes.Const(1))):
            return _Kind.EITHER
        if kind == _Kind.MESSAGES and not isinstance(known, str):
            self._plain(key)
            return _Kind.MESSAGES if isinstance(key, nodes.Slice) else _Kind.MESSAGE
        return self._plain(whole, key)

    def _compared(self, node: nodes.Compare) -> _Kind:
        """A content with nothing; a constant with the keys of a message, or with the words in it; else plain things."""
        first = node.ops[0]
        if len(node.ops) == 1 and isinstance(first.expr, nodes.Const) and first.expr.value in ("", None):
            self._kind(node.expr, _Kind.EITHER)
        elif len(node.ops) == 1 and isinstance(node.expr, nodes.Const) and first.op in ("in", "notin"):
            kind = self._kind(first.expr, _Kind.MESSAGE)
            if kind == _Kind.TEXT or (kind in _SAID and not self._lacks(node.expr)):
                raise _Looks
        else:
            self._plain(node.expr, *(one.expr for one in node.ops))
        return _Kind.PLAIN

    def _filtered(self, node: nodes.Filter) -> _Kind:
        assert node.node is not None  # but in a block, which raises
        kind = self._kind(node.node)
        if not _arguments(node):
            if node.name == "trim" and kind <= _Kind.EITHER:
                return kind
            if node.name in ("length", "count") and kind in (_Kind.MESSAGES, _Kind.PIECES):
                return _Kind.PLAIN
        return self._plain(node.node, *_arguments(node))

    def _called(self, node: nodes.Call) -> _Kind:
        """A method of a content that strips it, or looks for a word; else methods and functions of plain things."""
        method, arguments = node.node, _arguments(node)
        if not isinstance(method, nodes.Getattr) or (kind := self._known(method.node)) not in _SAID:
            return self._plain(method, *arguments)
        if method.attr == "strip" and not arguments:
            return kind
        word = arguments[0] if arguments else nodes.Const("")
        if len(arguments) > 1 or not isinstance(word, nodes.Const) or not isinstance(word.value, str):
            raise _Looks
        if method.attr in ("strip", "lstrip", "rstrip") and not word.value.strip():
            self.bare = True  # it takes away some of the white space
            return kind
        if method.attr not in _FINDS or not self._lacks(word):
            raise _Looks
        return _FINDS[method.attr]


def _either(one: _Kind, other: _Kind) -> _Kind:
    """What holds one thing or the other."""
    if one != other and max(one, other) > _Kind.TEXT:
        raise _Looks
    return one if one == other else max(one, other, _Kind.EITHER)


def _arguments(node: nodes.Call | nodes.Filter | nodes.Test) -> list[nodes.Node]:
    named = [pair.value for pair in node.kwargs]
    return [*node.args, *named, *(one for one in (node.dyn_args, node.dyn_kwargs) if one is not None)]
