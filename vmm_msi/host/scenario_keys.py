"""Change one value of a scenario by its key, such as ``guest.device[B].stage1``.

A key is that of a scenario file, with a selector in brackets behind a table of which there are
several: the id of an SMMU, an ITS, a vITS or a stage 1, the PCI address of a device, its letter
(``A`` is the first device of the guest) or its index from 0, or ``*`` for all.
"""

from __future__ import annotations

import re
import tomllib
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from vmm_msi.errors import InputError, UsageError, did_you_mean
from vmm_msi.host.scenario_export import scenario_document
from vmm_msi.host.scenario_tables import ScenarioFile
from vmm_msi.tomlfile import copied
from vmm_msi.types import Address, PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.tomlfile import KeyPath
    from vmm_msi.types import Scenario

_PART = re.compile(r"(?P<name>\w+)(?:\[(?P<selector>[^\[\]]*)\])?(?:\.|$)", re.ASCII)
_KEY_END = re.compile(r"=(?![^\[]*\])")
_MAX_SHOWN = 12


@dataclass(frozen=True)
class Setting:
    """A key and the value that it gets.

    :param key: as the user wrote it.
    :param value: a value of TOML; None removes the key, so that it has its default.
    """

    key: str
    value: Any

    @classmethod
    def parse(cls, text: str, option: str = "--set") -> Setting:
        """Read ``KEY=VALUE``.

        :param option: for messages.
        :raise UsageError: for another form.
        """
        end = _KEY_END.search(text)
        if end is None or not end.start():
            raise UsageError(
                f"{option} {text!r}: not of the form KEY=VALUE; use a form such as "
                "guest.device[B].stage1=s1b"
            )
        return cls(text[: end.start()].strip(), value_of(text[end.end() :]))

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)}"


@dataclass(frozen=True)
class Change:
    """What a setting did at one place.

    :param key: with the address or the id of what it is of.
    :param before: None for a default that the file does not write.
    :param note: what else changed.
    """

    key: str
    before: Any
    after: Any
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.key} = {shown(self.after)}, was {shown(self.before)}{note}"


def value_of(text: str) -> Any:  # noqa: ANN401 - any TOML value
    """Return a value of TOML; a text that is none is a string; an empty one is None."""
    text = text.strip()
    if not text:
        return None
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if len(document) > 1 or "\n" in text:
        return text
    value = document["value"]
    return Address(value) if isinstance(value, int) and text.startswith("0x") else value


def shown(value: object) -> str:
    """Return a value for people."""
    from vmm_msi.host.scenario_text import toml_value

    return "its default" if value is None else toml_value(value)


class ScenarioEditor:
    """A scenario as a document whose values are changed by key.

    :param scenario: what is changed; it stays as it is.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._document: dict[str, Any] = copied(scenario_document(scenario))
        self._complete = scenario_document(scenario, complete=True)
        self._devices = [str(device.host) for device in scenario.guest.devices]

    @property
    def document(self) -> dict[str, Any]:
        """The document, to be read as a scenario."""
        return self._document

    def set(self, setting: Setting) -> list[Change]:
        """Change a value.

        :return: what changed.
        :raise UsageError: for a key that does not exist, with the valid ones.
        """
        return [self._assign(path, setting) for path in self.paths(setting.key)]

    def paths(self, key: str) -> list[KeyPath]:
        """Return the places that a key names.

        :raise UsageError: when it names none.
        """
        paths: list[KeyPath] = [()]
        kind: Any = ScenarioFile
        position = 0
        while position < len(key) or not position:
            match = _PART.match(key, position)
            if match is None:
                raise UsageError(f"{key!r}: not a key of a scenario; use one such as host.granule")
            before = key[:position].removesuffix(".")
            kind = _field(kind, match["name"], key, before)
            position = match.end()
            place = key[: match.start()] + match["name"]
            is_last = position >= len(key)
            paths = [
                inner
                for path in paths
                for inner in self._select(
                    (*path, match["name"]), kind, match["selector"], key, place, is_last=is_last
                )
            ]
            kind = _element(kind) if match["selector"] is not None else kind
        return paths

    def _select(
        self,
        path: KeyPath,
        kind: object,
        selector: str | None,
        key: str,
        place: str,
        *,
        is_last: bool,
    ) -> Iterator[KeyPath]:
        """Yield the paths that a part of a key selects."""
        element = _element(kind)
        if selector is None:
            if element is not None and _table(element) and not is_last:
                names = self._names(path)
                raise UsageError(
                    f"{key}: {place} is an array of tables; select one of them: "
                    f"{', '.join(f'{place}[{name}]' for name in names[:_MAX_SHOWN])}"
                )
            if not is_last:
                self._materialise(path)
            yield path
            return
        if element is None:
            raise UsageError(f"{key}: {place} is not an array; use it without [{selector}]")
        names = self._names(path)
        if selector == "*":
            yield from ((*path, index) for index in range(len(names)))
            return
        index = self._index(path, selector, names)
        if index is None:
            valid = ", ".join(names[:_MAX_SHOWN]) or "none"
            more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
            hint = did_you_mean(selector, names)
            valid += f"{more}{self._letters(path)}"
            raise UsageError(f"{key}: {place} has no [{selector}]; {hint}valid: {valid}")
        yield (*path, index)

    def _letters(self, path: KeyPath) -> str:
        last = min(len(self._devices), 26)
        is_device = path[1:] == ("device",) and last
        return f", or A to {chr(ord('A') + last - 1)} for the guest's devices" if is_device else ""

    def _index(self, path: KeyPath, selector: str, names: list[str]) -> int | None:
        """Return the index of an element; None if the selector names none."""
        name = selector.strip("\"'")
        if path[1:] == ("device",):
            if re.fullmatch(r"[A-Z]", name) and ord(name) - ord("A") < len(self._devices):
                name = self._devices[ord(name) - ord("A")]
            elif not re.fullmatch(r"\d+", name, re.ASCII):
                try:
                    name = str(PciAddress.parse(name))
                except InputError:
                    return None
        if name in names:
            return names.index(name)
        is_index = name.isdecimal() and name.isascii() and "id" not in _keys_of(path)
        return int(name) if is_index and int(name) < len(names) else None

    def _names(self, path: KeyPath) -> list[str]:
        """Return what selects each element of an array: its id, its address, else its index."""
        self._materialise(path)
        elements = _at(self._document, path) or []
        key = {"device": "host" if path[0] == "guest" else "address", "function": "address"}.get(
            str(path[-1]), "id"
        )
        return [
            str(element.get(key, index)) if isinstance(element, dict) else str(index)
            for index, element in enumerate(elements)
        ]

    def _materialise(self, path: KeyPath) -> None:
        """Write the tables at a path into the document if they are left out there."""
        if _at(self._document, path) is not None:
            return
        value = _at(self._complete, path)
        if value is None:
            return
        parent = _at(self._document, path[:-1])
        if isinstance(parent, dict):
            parent[path[-1]] = copied(value)
        if path == ("guest", "stage1"):
            complete = _at(self._complete, ("guest", "device"))
            stages = self._document["guest"]["stage1"]
            for device, full in zip(self._document["guest"]["device"], complete, strict=True):
                name = device.setdefault("stage1", full["stage1"])
                if all(stage1["id"] != name for stage1 in stages):
                    stages.append({"id": name})

    def _assign(self, path: KeyPath, setting: Setting) -> Change:
        """Give a value to the key at a path."""
        before = _at(self._document, path)
        if before is None:
            before = _at(self._complete, path)
        note = ""
        if path[:2] == ("guest", "device") and path[3:] == ("stage1",):
            note = self._add_stage1(setting.value, before)
        self._materialise(path[:-1])
        parent = _at(self._document, path[:-1])
        if setting.value is None:
            if isinstance(parent, dict):
                parent.pop(path[-1], None)
        else:
            parent[path[-1]] = copied(setting.value)
        return Change(self.show(path), before, setting.value, note)

    def _add_stage1(self, name: object, before: object) -> str:
        """Add a stage 1 for a name that the guest lacks, like its device's former stage 1."""
        stages = self._document["guest"].get("stage1")
        if stages is None or not isinstance(name, str):
            return ""
        former = next((stage1 for stage1 in stages if stage1["id"] == before), None)
        if former is None or any(stage1["id"] == name for stage1 in stages):
            return ""
        stages.append({**former, "id": name})
        return f"a new stage 1, as {before} is"

    def show(self, path: KeyPath) -> str:
        """Return a path with the names of elements in place of their indexes."""
        text = ""
        for at, step in enumerate(path):
            if isinstance(step, int):
                text += f"[{self._names(path[:at])[step]}]"
            else:
                text += f".{step}"
        return text.removeprefix(".")


def _at(document: Any, path: KeyPath) -> Any:  # noqa: ANN401 - any TOML value
    """Return the value at a path; None if the document lacks it."""
    for step in path:
        if isinstance(document, dict):
            document = document.get(str(step))
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            document = document[step]
        else:
            return None
    return document


def _keys_of(path: KeyPath) -> list[str]:
    """Return the keys of the elements of the array at a path."""
    kind: Any = ScenarioFile
    for step in path:
        if isinstance(step, str):
            kind = _field(kind, step, "", "")
        kind = _element(kind) or kind
    table = _table(kind)
    return [] if table is None else [field.name for field in msgspec.structs.fields(table)]


def _field(kind: object, name: str, key: str, place: str) -> object:
    """Return the type of a key of a table.

    :raise UsageError: for a key that the table does not have.
    """
    table = _table(kind)
    if table is None:
        raise UsageError(f"{key}: {place} is a value, not a table; use {place} alone")
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(table)}
    if name not in fields:
        valid = sorted(fields)
        where = f"{place} has no key {name!r}" if place else f"no table {name!r}"
        raise UsageError(f"{key}: {where}; {did_you_mean(name, valid)}valid: {', '.join(valid)}")
    return fields[name]


def _table(kind: object) -> type[msgspec.Struct] | None:
    """Return the struct that a type is or may be."""
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _element(kind: object) -> object | None:
    """Return the type of an array's elements; None for a type that is not an array."""
    for option in (kind, *typing.get_args(kind)):
        if typing.get_origin(option) is tuple:
            element: object = typing.get_args(option)[0]
            return element
    return None
