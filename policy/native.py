"""regopy's C interface for the two calls of the hot path: give an input, ask an entry point.

The functions are bound once more, for two reasons. `regopy.Input` copies every string through a buffer and hands it on
unescaped, so that a quote in a tool's name would end the string; and its library gives up Python's lock at each of some
hundred calls per input, each time a chance to wait for another thread.
"""

import ctypes
import functools
from typing import Any

import orjson
from regopy.rego_shared import rego as _shared

from policy.port import Document, EvaluationError

OUTPUT_BYTES_MAX = 1024 * 1024

_OK = 0
_TOO_SMALL = 2
_INT_MAX = 2**63 - 1
_INPUT_DEPTH_MAX = 32
_STRINGS_MAX = 4096
_BUFFER_BYTES = 16 * 1024

_library = ctypes.PyDLL(_shared._name)
# An evaluation can be long, and the process that runs it must notice meanwhile that nobody waits for it any more.
_unlocked = ctypes.CDLL(_shared._name)


def _bind(name: str, result: Any, *arguments: Any, library: ctypes.CDLL = _library) -> Any:
    function = library[name]
    function.restype, function.argtypes = result, list(arguments)
    return function


_handle, _code, _size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32
_new_input = _bind("regoNewInput", _handle)
_free_input = _bind("regoFreeInput", None, _handle)
_set_input = _bind("regoSetInput", _code, _handle, _handle)
_push_string = _bind("regoInputString", _code, _handle, ctypes.c_char_p)
_push_int = _bind("regoInputInt", _code, _handle, ctypes.c_int64)
_push_float = _bind("regoInputFloat", _code, _handle, ctypes.c_double)
_push_boolean = _bind("regoInputBoolean", _code, _handle, ctypes.c_bool)
_push_null = _bind("regoInputNull", _code, _handle)
_make_item = _bind("regoInputObjectItem", _code, _handle)
_make_object = _bind("regoInputObject", _code, _handle, _size)
_make_array = _bind("regoInputArray", _code, _handle, _size)
_query = _bind("regoBundleQueryEntrypoint", _handle, _handle, _handle, ctypes.c_char_p, library=_unlocked)
_output_ok = _bind("regoOutputOk", ctypes.c_bool, _handle)
_output_size = _bind("regoOutputJSONSize", _size, _handle)
_output_json = _bind("regoOutputJSON", _code, _handle, ctypes.c_char_p, _size)
_free_output = _bind("regoFreeOutput", None, _handle)


class Session:
    """One interpreter with its compiled bundle; one caller at a time, for the input is the interpreter's."""

    def __init__(self, interpreter: Any, compiled: Any) -> None:
        self._owners = (interpreter, compiled)
        self._interpreter: int = interpreter._impl
        self._compiled: int = compiled._impl
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)

    def answer(self, entry: bytes, document: Document) -> bytes:
        """The engine's own text about an entry point for one input, for `value_of`; raises EvaluationError."""
        handle = _new_input()
        try:
            _push(handle, document, _INPUT_DEPTH_MAX)
            if _set_input(self._interpreter, handle) != _OK:
                raise EvaluationError("the engine refused the input")
        finally:
            _free_input(handle)
        output = _query(self._interpreter, self._compiled, entry)
        if not output:
            raise EvaluationError("the engine gave no answer")
        try:
            if not _output_ok(output):
                raise EvaluationError("the rules conflict or a function failed on this input")
            return self._text(output)
        finally:
            _free_output(output)

    def _text(self, output: int) -> bytes:
        code = _output_json(output, self._buffer, _BUFFER_BYTES)
        if code == _OK:
            return self._buffer.value
        size = int(_output_size(output))
        if code != _TOO_SMALL or size > OUTPUT_BYTES_MAX:
            raise EvaluationError(f"an answer of {size} bytes is too large")
        buffer = ctypes.create_string_buffer(size)
        if _output_json(output, buffer, size) != _OK:
            raise EvaluationError("the engine could not write its answer")
        return buffer.value


@functools.lru_cache(maxsize=_STRINGS_MAX)
def string_bytes(text: str) -> bytes:
    """The JSON text of a string without its quotes, the form in which the engine keeps and compares strings."""
    try:
        return orjson.dumps(text)[1:-1]
    except TypeError as error:
        raise EvaluationError("the input holds a string that is not Unicode") from error


def _push(handle: int, value: Any, depth_left: int) -> None:
    """Puts one value on the input's stack; strings first, for most values are."""
    kind = type(value)
    if kind is str:
        _push_string(handle, string_bytes(value))
    elif kind is dict:
        _push_object(handle, value, depth_left)
    elif kind is list:
        if not depth_left:
            raise EvaluationError("the input is nested too deep")
        for item in value:
            _push(handle, item, depth_left - 1)
        _make_array(handle, len(value))
    else:
        _push_scalar(handle, value)


def _push_object(handle: int, value: Document, depth_left: int) -> None:
    if not depth_left:
        raise EvaluationError("the input is nested too deep")
    for key, item in value.items():
        _push_string(handle, string_bytes(key))
        if type(item) is str:
            _push_string(handle, string_bytes(item))
        else:
            _push(handle, item, depth_left - 1)
        _make_item(handle)
    _make_object(handle, len(value))


def _push_scalar(handle: int, value: object) -> None:
    if value is True or value is False:
        _push_boolean(handle, value)
    elif isinstance(value, int) and -_INT_MAX <= value <= _INT_MAX:
        _push_int(handle, value)
    elif value is None:
        _push_null(handle)
    elif isinstance(value, float) and value == value and abs(value) != float("inf"):
        _push_float(handle, value)
    else:
        raise EvaluationError(f"the input holds {value!r:.40}, which the engine cannot take")
