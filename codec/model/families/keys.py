"""Read single keys of other people's configs, with refusals that name key and value."""

from collections.abc import Mapping
from typing import Any

from codec.errors import FormatError

_NONE = object()


class Keys:
    """A config's keys, each asked for with its type; a refusal says where, which key, and what was found."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where = values, where

    def get(self, name: str, kind: type, default: Any = _NONE) -> Any:
        """Return the value of a key, `default` where the file does not have the key, or has null.

        Raises:
            FormatError: no value and no default, or one of another type.
        """
        value = self._values.get(name)
        if value is None and default is not _NONE:
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise FormatError(f"{self._where}: {name} is {value!r}, expected a value of type {kind.__name__}")
        return value

    def only(self, name: str, *known: Any) -> None:
        """Refuse a key whose value is none of `known`; null and a missing key are always known.

        Raises:
            FormatError: another value.
        """
        value = self._values.get(name)
        if value is not None and value not in known:
            raise FormatError(
                f"{self._where}: {name} is {value!r}; underpar knows {' or '.join(repr(k) for k in known) or 'none'}"
            )

    def token(self, name: str, default: int) -> int:
        """Return the id of a token; the first where the file has a list of them."""
        value = self._values.get(name)
        if isinstance(value, list) and value and type(value[0]) is int:
            return value[0]
        return self.get(name, int, default)
