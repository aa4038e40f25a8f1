"""What `with db.transaction()` enters and leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable


class Transaction(contextlib.AbstractContextManager[None]):
    """One object for all transactions of a database, since every file operation begins several."""

    def __init__(self, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        """`end` is told whether the body failed."""
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end(error is not None)
