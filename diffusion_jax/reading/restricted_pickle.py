"""An unpickler that runs nothing that a pickle may name, for readers of foreign files.

A pickle is a program: it names functions and calls them. Here each name that a format needs is replaced by a few lines
that can make data and nothing else; every other name is refused, and so is every operation that the format does not
need.

What comes out may still share parts or hold itself, so that a few bytes describe a tree without end: readers bound what
they walk, and what their functions copy.

The unpickler is the standard library's pure-Python one: the C version crashes the process on deeply nested tuples, and
allocates whatever memory a number in the pickle asks for.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

_Unpickler: Any = getattr(pickle, "_Unpickler")  # noqa: B009

# Numbers, text, lists, dicts, tuples and calls in protocols 0 to 2.
DATA = frozenset(
    name[0]
    for name in (
        *(pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.PROTO, pickle.NONE),
        *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1),
        *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.UNICODE, pickle.BINUNICODE),
        *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT),
        *(pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD),
    )
)
PROTOCOL_4 = frozenset(
    name[0]
    for name in (
        *(pickle.FRAME, pickle.MEMOIZE, pickle.STACK_GLOBAL, pickle.SHORT_BINUNICODE),
        *(pickle.BINUNICODE8, pickle.BINBYTES8, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    )
)


class RestrictedUnpickler(_Unpickler):
    """Unpickler with the operations and names of one format.

    Attributes:
      format: The format for messages, such as "batch".
      operations: Codes of the allowed operations.
      allowed: What stands for each (module, name).
    """

    format: ClassVar[str]
    operations: ClassVar[frozenset[int]]
    allowed: ClassVar[Mapping[tuple[str, str], Any]]
    dispatch: ClassVar[dict[int, Any]]

    def __init_subclass__(cls) -> None:
        own = {
            pickle.TUPLE[0]: cls._tuple,
            pickle.TUPLE1[0]: lambda self: self._tuple(1),
            pickle.TUPLE2[0]: lambda self: self._tuple(2),
            pickle.TUPLE3[0]: lambda self: self._tuple(3),
            pickle.BUILD[0]: cls._build,
        }
        cls.dispatch = {
            code: own.get(code, operation) if code in cls.operations else cls._refuse
            for code, operation in _Unpickler.dispatch.items()
        }

    def set_state(self, made: object, state: object) -> None:
        """Sets the state of an object, if objects of the format have any."""
        del made, state
        raise pickle.UnpicklingError("it sets the state of something that has none")

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no {self.format} does")
        return self.allowed[module, name]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError(f"it holds objects that no {self.format} does")

    def _tuple(self, size: int | None = None) -> None:
        """Pushes a tuple on the stack; those of arrays and tensors are never nested more than two deep."""
        items = self.pop_mark() if size is None else [self.stack.pop() for _ in range(size)][::-1]
        if any(isinstance(x, tuple) for item in items if isinstance(item, tuple) for x in item):
            raise pickle.UnpicklingError("its tuples are nested deeply")
        self.append(tuple(items))

    def _build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)
