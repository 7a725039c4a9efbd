"""Collect every problem of a scenario file, with line and key, and refuse the file once."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vmm_msi import tomlfile
from vmm_msi.errors import InputError, ScenarioError
from vmm_msi.quantity import quantity
from vmm_msi.types import Granule, PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from vmm_msi.tomlfile import KeyPath, Problem

T = TypeVar("T")
Table = TypeVar("Table")

#: Problems that one error reports; of more, only the number.
MAX_PROBLEMS = 50
_ID_END = 1 << 32


class UnusableError(Exception):
    """The element of an array that has a problem, which is recorded, and no value."""


class Problems:
    """The problems of one file.

    Indexes in paths are those of the file, also after :meth:`repaired` removed elements.

    :param text: of the file; empty for a document that is not one.
    :param source: name of the file, for messages.
    """

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._found: dict[tuple[KeyPath, str], None] = {}
        self._kept: dict[KeyPath, list[int]] = {}
        self._incomplete: set[KeyPath] = set()
        self._first: dict[object, KeyPath] = {}

    def add(self, path: KeyPath, message: str) -> None:
        """Record a problem; the same one of a path counts once."""
        path = self.place(path)
        self._found[path, f"{tomlfile.show_path(path)}: {message}"] = None

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        """Record a problem without which there is no value.

        :raise UnusableError: always.
        """
        self.add(path, message)
        raise UnusableError

    def refuse(self) -> None:
        """Refuse the file if it has problems.

        :raise ScenarioError: with a line for each.
        """
        if not self._found:
            return
        lines = tomlfile.find_lines(self._text, [path for path, _message in self._found])
        found = sorted(zip(lines, self._found, strict=True), key=lambda problem: problem[0])
        errors = [
            f"{self._source}{f':{line}' if self._text else ''}: {message}"
            for line, (_path, message) in found[:MAX_PROBLEMS]
        ]
        if len(found) > MAX_PROBLEMS:
            more = quantity(len(found) - MAX_PROBLEMS, "more error")
            errors.append(f"{self._source}: and {more}; fix those above first")
        raise ScenarioError(*errors)

    def repaired(self, document: object, kind: type) -> object | None:
        """Record what decoding would refuse, and return the document without it.

        A key that has a default is removed, and an element of an array that lacks a key.

        :param kind: the type that the document is decoded to.
        :return: None if nothing is left.
        """
        found = list(tomlfile.problems(document, kind))
        for problem in found:
            self._found[problem.path, problem.message] = None
        while found:
            for problem in found:
                path = _removable(problem)
                if not path:
                    return None
                _remove(document, path)
            found = list(tomlfile.problems(document, kind))
        compact: object = self._compact(document, ())
        return compact

    def _compact(self, value: Any, path: KeyPath) -> Any:  # noqa: ANN401 - any TOML value
        """Return a value without what is removed, and note which elements of arrays are left."""
        if isinstance(value, dict):
            return {
                key: self._compact(inner, (*path, key))
                for key, inner in value.items()
                if inner is not tomlfile.REMOVED
            }
        if not isinstance(value, list):
            return value
        kept = [index for index, inner in enumerate(value) if inner is not tomlfile.REMOVED]
        if len(kept) < len(value):
            self._kept[path] = kept
            self._incomplete.add(path)
        return [self._compact(value[index], (*path, at)) for at, index in enumerate(kept)]

    def place(self, path: KeyPath) -> KeyPath:
        """Return a path with the indexes of the file."""
        return tuple(
            self._kept[path[:at]][step] if isinstance(step, int) and path[:at] in self._kept
            else step
            for at, step in enumerate(path)
        )  # fmt: skip

    def show(self, path: KeyPath) -> str:
        """Return a path as messages name it."""
        return tomlfile.show_path(self.place(path))

    def each(
        self, tables: Sequence[Table], at: KeyPath, read: Callable[[Table, KeyPath], T]
    ) -> Iterator[T]:
        """Yield what ``read`` returns for each table; nothing for an unusable table."""
        for index, table in enumerate(tables):
            try:
                yield read(table, (*at, index))
            except UnusableError:
                self._incomplete.add(at)

    def attempt(self, read: Callable[[], T]) -> T | None:
        """Return a value, or None if a problem prevents it."""
        try:
            return read()
        except UnusableError:
            return None

    def is_incomplete(self, at: KeyPath) -> bool:
        """Return whether an element of an array had to be left out."""
        return at in self._incomplete

    # --- checks of values -----------------------------------------------------------------------

    def address(self, text: str, at: KeyPath) -> PciAddress:
        """Return a PCI address.

        :raise UnusableError: when it is not one.
        """
        try:
            return PciAddress.parse(text)
        except InputError as failure:
            self.fail(at, tomlfile.one_line(str(failure)))

    def granule(self, text: str, at: KeyPath) -> Granule:
        """Return a granule; the smallest for a text that is not one."""
        try:
            return Granule.parse(text)
        except InputError as failure:
            self.add(at, tomlfile.one_line(str(failure)))
            return Granule.K4

    def aligned(self, value: int, size: int, at: KeyPath, what: str) -> None:
        """Check that a value is a multiple of a size."""
        if value % size:
            self.add(at, f"{value:#x} is not a multiple of {int(size):#x}, the size of {what}")

    def below(self, value: int, end: int, at: KeyPath) -> None:
        """Check that a value is below a limit."""
        if value >= end:
            self.add(at, f"{value:#x} is not from 0 to {end - 1:#x}")

    def range(self, base: int, size: int, at: KeyPath, end: int) -> None:
        """Check that a range is not empty and ends below a limit."""
        if not size or base + size > end:
            self.add(
                at, f"{size:#x} bytes from {base:#x} are not a range below {end:#x} with a size"
            )

    def known(
        self, value: int | str, valid: Collection[int | str], at: KeyPath, tables: KeyPath
    ) -> bool:
        """Check that a value is the id of one of some tables.

        :return: True.
        :raise UnusableError: when it is not.
        """
        if value not in valid and self.is_incomplete(tables):
            raise UnusableError  # perhaps of a table that has a problem of its own
        if value not in valid:
            what = f"[[{tomlfile.show_path(tables)}]]"
            message = f"no {what} has the id {value!r}; valid: {names(valid)}"
            self.fail(at, tomlfile.one_line(message))
        return True

    def only(self, valid: Collection[T], at: KeyPath, key: str, tables: KeyPath) -> T:
        """Return the id of the only table, for a key that names none.

        :raise UnusableError: when there is another number of them.
        """
        if self.is_incomplete(tables):
            raise UnusableError
        if len(valid) != 1:
            what = f"[[{tomlfile.show_path(tables)}]]"
            several = f"{len(valid)} {what} tables; add {key}; valid: {names(valid)}"
            self.fail(at, f"has no {key}, and the file has {several if valid else f'no {what}'}")
        return next(iter(valid))

    def new_id(self, value: int | str | None, at: KeyPath) -> int | str:
        """Return the id of a table, which no table before it has.

        :param value: None for the index of the table in the file.
        :raise UnusableError: when it is not a valid number.
        """
        number = self.place(at)[-1] if value is None else value
        if isinstance(number, int):
            if number >= _ID_END:
                self.fail((*at, "id"), f"{number:#x} is not from 0 to {_ID_END - 1:#x}")
            number = int(number)
        self.first((*at[:-1], number), at, "id", repr(number))
        return number

    def first(self, value: object, at: KeyPath, key: str, shown: str) -> None:
        """Check that a table is the first with a value.

        :param value: what no two tables may have, such as a number and what it is of.
        """
        other = self._first.setdefault(value, at)
        if other != at:
            self._incomplete.add(at[:-1])
            _host, *rest = self.place(other)
            table = tomlfile.show_path(tuple(rest))
            self.add((*at, key), tomlfile.one_line(f"{shown} is also that of {table}"))


def names(valid: Collection[object]) -> str:
    """Return ids for people, at most 20 of them."""
    listed = sorted(map(str, valid), key=lambda name: (len(name), name))
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return (", ".join(islice(listed, 20)) or "none") + more


def _removable(problem: Problem) -> KeyPath:
    """Return the path of what is removed because of a problem; empty if nothing can be."""
    path = problem.path
    if problem.is_missing or isinstance(path[-1], int):
        indexes = [at for at, step in enumerate(path) if isinstance(step, int)]
        return path[: indexes[-1] + 1] if indexes else ()
    return path


def _remove(document: Any, path: KeyPath) -> None:  # noqa: ANN401 - any TOML value
    for step in path[:-1]:
        document = document[step]
        if document is tomlfile.REMOVED:
            return
    if isinstance(document, dict):
        document.pop(path[-1], None)
    else:
        document[path[-1]] = tomlfile.REMOVED
