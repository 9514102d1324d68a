"""The brackets of a statement: what encloses what, which of them hold literals, and where a literal begins."""

from enum import Enum
from typing import NamedTuple

from policy.source import Statement, Token

_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
# Names after which a value is still to come.
_BEFORE_A_VALUE = frozenset({"as", "contains", "default", "else", "every", "if", "in", "not", "some", "with"})
_INFIX = frozenset({":=", "=", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "&", "|", ",", "in"})


class Kind(Enum):
    """What a pair of brackets is: of a rule or an `every`, of a comprehension, or of a value."""

    BODY = 1
    COMPREHENSION = 2
    VALUE = 3


class Group(NamedTuple):
    """A pair of brackets by the indices of both; `bar` is that of a comprehension's bar, else of the opening one."""

    kind: Kind
    start: int
    bar: int
    end: int


class Groups:
    """The brackets of one statement, read once."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self._around: list[Group | None] = [None] * len(statement)
        self._starts: dict[int, Group] = {}
        self._ends: dict[int, Group] = {}
        self._read()

    def around(self, at: int) -> Group | None:
        """The innermost brackets around a token; for a bracket, those around its pair."""
        return self._around[at]

    def beginning(self, at: int) -> Group | None:
        """The brackets that a token opens."""
        return self._starts.get(at)

    def body_after(self, at: int) -> Group | None:
        """The body that follows a token, such as an `every`, at its own level."""
        for start in range(at + 1, len(self.statement)):
            group = self._starts.get(start)
            if group is not None and group.kind is Kind.BODY and self._around[start] is self._around[at]:
                return group
        return None

    def scope(self, at: int) -> Group | None:
        """The innermost body or comprehension around a token."""
        group = self._around[at]
        while group is not None and group.kind is Kind.VALUE:
            group = self._around[group.start]
        return group

    def before(self, at: int) -> int | None:
        """The token, or the start of the brackets, before one in its literal or value; None where that begins."""
        around = self._around[at]
        left = at - 1
        if left < 0 or (around is not None and left in (around.start, around.bar)):
            return None
        token = self.statement[left]
        if token.text in (";", "if") or (around is not None and self._is_new_line(around, left)):
            return None
        return self._ends[left].start if left in self._ends else left

    def holds_literals(self, group: Group, at: int) -> bool:
        """Whether what stands at a token in these brackets is a literal of them, or a part of one."""
        while self._is_alone(group):
            around = self._around[group.start]
            if around is None:
                return True
            group, at = around, group.start
        return group.kind is Kind.BODY or (group.kind is Kind.COMPREHENSION and at > group.bar)

    def _is_alone(self, group: Group) -> bool:
        """Whether round brackets have nothing beside them in the literal or brackets around, but for a `not` before."""
        if self.statement[group.start].text != "(":
            return False
        left = self.before(group.start)
        if left is not None and self.statement[left].text == "not":
            left = self.before(left)
        after = group.end + 1
        is_last = after >= len(self.statement) or self.statement[after].text in (*_CLOSE, ";", "with", "else")
        return left is None and (is_last or self.before(after) is None)

    def _is_new_line(self, around: Group, left: int) -> bool:
        """Whether a new literal begins after a token because a line does."""
        if around.kind is Kind.VALUE or left < around.bar:
            return False
        token, following = self.statement[left], self.statement[left + 1]
        last = token.text in _INFIX or token.text in _BEFORE_A_VALUE or token.text == "."
        return token.line != following.line and not last and following.text not in _INFIX

    def _read(self) -> None:
        opened: list[int] = []
        bars: dict[int, int] = {}
        separated: set[int] = set()
        parents: list[int | None] = []
        for at, token in enumerate(self.statement):
            text = token.text if token.kind == "punct" else ""
            if text in _CLOSE and opened:
                start = opened.pop()
                group = self._group(start, bars.get(start, start), at)
                self._starts[start] = self._ends[at] = group
            parents.append(opened[-1] if opened else None)
            if text in _OPEN:
                opened.append(at)
            elif opened and text == "," and opened[-1] not in bars:
                separated.add(opened[-1])
            elif opened and text == "|" and opened[-1] not in separated:
                bars.setdefault(opened[-1], at)
        self._around = [None if parent is None else self._starts.get(parent) for parent in parents]

    def _group(self, start: int, bar: int, end: int) -> Group:
        text = self.statement[start].text
        has_value_before = start > 0 and _ends_a_value(self.statement[start - 1])
        is_same_line = start > 0 and self.statement[start - 1].line == self.statement[start].line
        is_next = has_value_before and is_same_line
        if text == "{" and (is_next or (start > 0 and self.statement[start - 1].text in ("if", "else"))):
            return Group(Kind.BODY, start, start, end)
        is_index = text == "[" and is_next
        if bar != start and text != "(" and not is_index:
            return Group(Kind.COMPREHENSION, start, bar, end)
        return Group(Kind.VALUE, start, start, end)


def _ends_a_value(token: Token) -> bool:
    if token.kind == "punct":
        return token.text in _CLOSE
    return token.kind != "name" or token.text not in _BEFORE_A_VALUE
