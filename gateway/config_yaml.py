"""YAML with places: plain values of a document, and the line and column that each of them came from."""

from dataclasses import dataclass, field
from typing import Any

import yaml

BYTES_MAX = 1 << 20
NODES_MAX = 100_000
DEPTH_MAX = 32

_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the text itself."""

    mark: Mark
    location: Location
    message: str


@dataclass(slots=True)
class Document:
    """The values of a text, the place of each key or item by its location, and what was wrong with the text."""

    data: Any = None
    marks: dict[Location, Mark] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_document(content: bytes) -> Document:
    """The document in UTF-8 `content`; faults are collected, and the data is what could be read around them."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        mark = Mark(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        return Document(faults=[Fault(mark, (), "is not UTF-8")])
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        before_text = text[: error.position]
        mark = Mark(before_text.count("\n") + 1, error.position - before_text.rfind("\n"))
        return Document(faults=[Fault(mark, (), "a control character, which YAML does not allow")])
    return _Reader(loader).read()


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops at documents nested deeper than any configuration."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            mark = parent.start_mark if parent else None
            raise yaml.MarkedYAMLError(problem=f"is nested deeper than {DEPTH_MAX} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _TooLarge(Exception):
    """Aliases made the document larger than its text may be; ends the reading."""


class _Reader:
    """Turns nodes into plain values, noting where each stands.

    An alias shares its node, so values are counted as they are made: a document that multiplies itself is cut off.
    """

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._document = Document()
        self._nodes = 0

    def read(self) -> Document:
        try:
            root = self._loader.get_single_node()
            if root is not None:
                self._document.marks[()] = _mark(root.start_mark)
                self._document.data = self._value(root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._fault(mark, (), error.problem or "is not YAML")
        except _TooLarge:
            self._fault(None, (), f"holds more than {NODES_MAX} values")
        return self._document

    def _fault(self, mark: yaml.Mark | None, location: Location, message: str) -> None:
        self._document.faults.append(Fault(_mark(mark) if mark else Mark(1, 1), location, message))

    def _value(self, node: yaml.Node, location: Location) -> Any:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _TooLarge
        if len(location) > DEPTH_MAX:
            raise yaml.MarkedYAMLError(problem="contains itself or nests too deep", problem_mark=node.start_mark)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            self._fault(node.start_mark, location, "tags are not supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, location)
        return self._scalar(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(key_node.start_mark, location, "a field's name must be text")
                continue
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._fault(key_node.start_mark, location, "merge keys (<<) are not supported: write the fields out")
                continue
            key = key_node.value
            here = (*location, key)
            if key in values:
                first = self._document.marks[here].line
                self._fault(key_node.start_mark, here, f"is named twice, first on line {first}")
                continue
            self._document.marks[here] = _mark(key_node.start_mark)
            values[key] = self._value(value_node, here)
        return values

    def _sequence(self, node: yaml.SequenceNode, location: Location) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            here = (*location, index)
            self._document.marks[here] = _mark(item.start_mark)
            values.append(self._value(item, here))
        return values

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError as error:
            self._fault(node.start_mark, location, f"is not a value: {error}")
            return None


def _mark(mark: yaml.Mark) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)
