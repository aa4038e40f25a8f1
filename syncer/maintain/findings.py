"""What a check found: kinds, counts, and the first of each kind in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

#: Of each kind, so many are told in words; all are counted.
_TOLD = 100

Progress = Callable[[str, int, int], None]
"""Called with what is being looked at, how far that is, and (0: not known) how far it goes."""


class Report:
    """Gathers findings. For one thread."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()
        self._repaired: Counter[str] = Counter()
        self._told: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def found(self, kind: str, text: str, *, is_repaired: bool = False) -> None:
        """One piece of damage; `text` says to what, with the file's path where there is one."""
        self._found[kind] += 1
        self._repaired[kind] += is_repaired
        if self._found[kind] <= _TOLD:
            self._told.append({"kind": kind, "text": text, "repaired": is_repaired})

    def repaired(self, kind: str) -> None:
        """All that was found of a kind so far is set right."""
        self._repaired[kind] = self._found[kind]
        for told in self._told:
            if told["kind"] == kind:
                told["repaired"] = True

    def take_over(self, other: Report) -> None:
        """Add what another report found, all of which is repaired."""
        for told in other._told:
            self._told.append({**told, "repaired": True})
        self._found += other._found
        self._repaired += other._found

    def has(self, *kinds: str) -> bool:
        """Whether damage of one of these kinds was found, and is not repaired."""
        return any(self._found[kind] > self._repaired[kind] for kind in kinds)

    def note(self, text: str) -> None:
        """Something that a person should know, and that is no damage."""
        self._notes.append(text)

    def result(self) -> dict[str, Any]:
        """All of it, for programs; the keys are documented in docs/commands.md."""
        damage = self._found.total()
        left = damage - self._repaired.total()
        return {
            "state": "clean" if not damage else "damaged" if left else "repaired",
            "damage": damage,
            "left": left,
            "kinds": {
                kind: {"found": count, "repaired": self._repaired[kind]}
                for kind, count in self._found.items()
            },
            "findings": self._told,
            "notes": self._notes,
        }
