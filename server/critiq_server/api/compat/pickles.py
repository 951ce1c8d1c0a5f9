"""A reader of pickles that makes plain data and nothing else: for trainers that send pickles over HTTP.

Python's own unpickler, however restricted, runs what it is told to, sizes its memo as it is told to, and hashes what it
is told to. This one is an interpreter of the few opcodes that plain data needs. It imports nothing, calls nothing but
the stand-ins of ``numpy_pickles``, and every table in it is bounded. Protocols 2 to 5 (opcodes as in ``pickletools``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from critiq.errors import InvalidArgument, TooLarge
from critiq_server.api.compat.numpy_pickles import STAND_INS, Array, Function, StandIn
from critiq_server.wording import quoted

FIELD = "body"


@dataclass(frozen=True, slots=True)
class PickleLimits:
    """``steps`` bounds opcodes, and with them the memo and the stack; ``depth`` how far containers may be nested;
    ``elements`` those of all NumPy arrays together."""

    max_bytes: int = 64 * 2**20
    steps: int = 50_000
    depth: int = 16
    elements: int = 100_000


def read_pickle(data: bytes, limits: PickleLimits = PickleLimits()) -> Any:
    """The value in ``data``: ``None``, bools, ints, floats, text, bytes, and lists, tuples and dicts of them.

    NumPy arrays of numbers or text become (nested) lists, NumPy scalars plain numbers or text. Keys of dicts are text
    or whole numbers. No container holds itself.

    Raises:
        TooLarge: more bytes, steps or depth than ``limits`` allow.
        InvalidArgument: it is damaged, or holds anything else; the message names what.
    """
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the pickle has {len(data)} bytes, the limit is {limits.max_bytes}", field=FIELD)
    return _Reader(data, limits).run()


class _Mark:
    """Stands on the stack where a container's items begin."""


_MARK = _Mark()
_CONTAINERS = (list, tuple, dict)


class _Reader:
    def __init__(self, data: bytes, limits: PickleLimits) -> None:
        self._data = data
        self._limits = limits
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # By id: how deep a container is, and which may not change any more since another one holds it. ``_kept`` keeps
        # every container alive, so that no id is used twice.
        self._depth: dict[int, int] = {}
        self._closed: set[int] = set()
        self._kept: list[Any] = []
        # Tuples that hold a NumPy type: arguments of a stand-in, but no data.
        self._arguments: set[int] = set()
        self._elements = 0

    def run(self) -> Any:
        for _ in range(self._limits.steps):
            opcode = self._take(1)
            if opcode == b".":
                value = self._pop()
                if self._stack or self._at != len(self._data):
                    raise _damaged("it goes on after its end")
                return self._data_of(value)
            step = _STEPS.get(opcode)
            if step is None:
                raise InvalidArgument(
                    f"the pickle uses the opcode {opcode!r} at byte {self._at - 1}, which plain data does not need; "
                    "send dicts, lists, text, numbers and bytes, pickled with protocol 2 to 5",
                    field=FIELD,
                )
            step(self)
        raise TooLarge(f"the pickle takes more than {self._limits.steps} steps to read; send less at once", field=FIELD)

    # Reading.

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise _damaged(f"it ends after {len(self._data)} bytes, in the middle of a value")
        self._at += count
        return piece

    def read(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 256)
        if end < 0:
            raise _damaged("a name in it has no end")
        line = self._take(end - self._at + 1)[:-1]
        return line.decode("utf-8", "backslashreplace")

    # The stack.

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _damaged("a value is missing")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _damaged("a value is missing")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        for position in range(len(self._stack) - 1, -1, -1):
            if self._stack[position] is _MARK:
                items = self._stack[position + 1 :]
                del self._stack[position:]
                return items
        raise _damaged("the beginning of a container is missing")

    # Values.

    def _plain(self, value: Any) -> Any:
        """What a value stands for: an array for a list. All else, and what is no data, stands for itself."""
        if not isinstance(value, Array):
            return value
        made = value.plain(self._limits.elements)
        if not value.counted:
            value.counted = True
            self._elements += value.count
            if self._elements > self._limits.elements:
                raise TooLarge(f"the arrays have more than {self._limits.elements} elements in all", field=FIELD)
        if isinstance(made, list) and id(made) not in self._depth:
            self._register(made, value.dimensions)
        return made

    def _data_of(self, value: Any) -> Any:
        value = self._plain(value)
        if isinstance(value, StandIn) or id(value) in self._arguments:
            raise InvalidArgument("the pickle holds a NumPy type or function where data is due", field=FIELD)
        return value

    def _register(self, container: Any, depth: int) -> None:
        self._kept.append(container)
        self._deepen(container, depth)

    def _deepen(self, container: Any, depth: int) -> None:
        if depth > self._limits.depth:
            raise TooLarge(f"the pickle nests containers more than {self._limits.depth} deep", field=FIELD)
        self._depth[id(container)] = max(depth, self._depth.get(id(container), 0))

    def _held(self, item: Any) -> tuple[Any, int]:
        """An item that goes into a container, and its depth; it may not change from now on."""
        if not isinstance(item, _CONTAINERS):
            return item, 0
        self._closed.add(id(item))
        return item, self._depth.get(id(item), 0)

    def _open(self, container: Any, kind: type) -> None:
        if not isinstance(container, kind) or id(container) in self._closed:
            raise _damaged(f"items are added to what is no open {kind.__name__}")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_container(self, container: Any) -> None:
        self._register(container, 1)
        self._stack.append(container)

    def make_tuple(self, items: list[Any]) -> None:
        held = [self._held(self._plain(item)) for item in items]
        made = tuple(item for item, _ in held)
        if made:  # the empty tuple is the same object everywhere
            self._register(made, 1 + max(depth for _, depth in held))
            if any(isinstance(item, StandIn) or id(item) in self._arguments for item in made):
                self._arguments.add(id(made))
        self._stack.append(made)

    def extend(self, items: list[Any]) -> None:
        target = self._top()
        self._open(target, list)
        for item in items:
            held, depth = self._held(self._data_of(item))
            self._deepen(target, 1 + depth)
            self._open(target, list)  # unless the item is the list itself
            target.append(held)

    def update(self, items: list[Any]) -> None:
        target = self._top()
        self._open(target, dict)
        if len(items) % 2:
            raise _damaged("a dict has a key without a value")
        for name, value in zip(items[::2], items[1::2], strict=True):
            key = self._plain(name)
            if type(key) not in (str, int):
                raise InvalidArgument(
                    f"the pickle has a dict with a key of type {type(key).__name__}; keys are text", field=FIELD
                )
            held, depth = self._held(self._data_of(value))
            self._deepen(target, 1 + depth)
            self._open(target, dict)
            target[key] = held

    def append(self) -> None:
        item = self._pop()
        self.extend([item])

    def appends(self) -> None:
        self.extend(self._since_mark())

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.update([key, value])

    def set_items(self) -> None:
        self.update(self._since_mark())

    def tuple_of_marked(self) -> None:
        self.make_tuple(self._since_mark())

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.make_tuple(items[::-1])

    def text(self, form: str) -> None:
        data = self._take(self.read(form))
        try:
            self.push(data.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise _damaged(f"its text is no UTF-8: {error.reason}") from error

    def blob(self, form: str) -> None:
        self.push(self._take(self.read(form)))

    def whole_number(self) -> None:
        size = self.read("<B")
        if size > 16:
            raise InvalidArgument(f"the pickle has a whole number of {size} bytes; 16 are enough", field=FIELD)
        self.push(int.from_bytes(self._take(size), "little", signed=True))

    def number(self, form: str) -> None:
        self.push(self.read(form))

    def protocol(self) -> None:
        version = self.read("<B")
        if not 2 <= version <= 5:
            raise InvalidArgument(f"the pickle is of protocol {version}; 2 to 5 are read", field=FIELD)

    def frame(self) -> None:
        """Frames only tell a reader of files how much to fetch."""
        if self.read("<Q") > len(self._data):
            raise _damaged("a frame is longer than the body")

    # The memo.

    def memoise_next(self) -> None:
        self.memoise(len(self._memo))

    def memoise(self, index: int) -> None:
        self._memo[index] = self._top()

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise _damaged(f"its memo has no entry {index}")
        self.push(self._memo[index])

    # Names and calls: of stand-ins only.

    def refer(self, module: object, name: object) -> None:
        stand_in = STAND_INS.get(f"{module}.{name}") if isinstance(module, str) and isinstance(name, str) else None
        if stand_in is None:
            raise InvalidArgument(
                f"the pickle refers to {quoted(f'{module}.{name}')}; nothing is imported or called for a caller. "
                "Send dicts, lists, text, numbers, bytes and NumPy arrays of numbers or text; pictures as the bytes of "
                "their files",
                field=FIELD,
            )
        self.push(stand_in)

    def refer_to_line(self) -> None:
        module = self._line()
        self.refer(module, self._line())

    def refer_to_top(self) -> None:
        name, module = self._pop(), self._pop()
        self.refer(module, name)

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise _damaged("it calls what cannot be called")
        self.push(function.called(arguments))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, StandIn) or not isinstance(state, tuple):
            raise _damaged("it sets the state of what has none")
        target.set_state(state)


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": _Reader.protocol,
    b"\x95": _Reader.frame,
    b"(": lambda reader: reader.push(_MARK),
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"K": lambda reader: reader.number("<B"),
    b"M": lambda reader: reader.number("<H"),
    b"J": lambda reader: reader.number("<i"),
    b"G": lambda reader: reader.number(">d"),
    b"\x8a": _Reader.whole_number,
    b"\x8c": lambda reader: reader.text("<B"),
    b"X": lambda reader: reader.text("<I"),
    b"\x8d": lambda reader: reader.text("<Q"),
    b"C": lambda reader: reader.blob("<B"),
    b"B": lambda reader: reader.blob("<I"),
    b"\x8e": lambda reader: reader.blob("<Q"),
    b"\x96": lambda reader: reader.blob("<Q"),
    b"]": lambda reader: reader.push_container([]),
    b"}": lambda reader: reader.push_container({}),
    b")": lambda reader: reader.make_tuple([]),
    b"t": _Reader.tuple_of_marked,
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"a": _Reader.append,
    b"e": _Reader.appends,
    b"s": _Reader.set_item,
    b"u": _Reader.set_items,
    b"q": lambda reader: reader.memoise(reader.read("<B")),
    b"r": lambda reader: reader.memoise(reader.read("<I")),
    b"\x94": _Reader.memoise_next,
    b"h": lambda reader: reader.recall(reader.read("<B")),
    b"j": lambda reader: reader.recall(reader.read("<I")),
    b"c": _Reader.refer_to_line,
    b"\x93": _Reader.refer_to_top,
    b"R": _Reader.call,
    b"b": _Reader.build,
}


def _damaged(reason: str) -> InvalidArgument:
    return InvalidArgument(f"the body is no complete pickle: {reason}", field=FIELD)
