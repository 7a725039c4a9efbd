"""Read ``vmm-msi.toml``: the strategies of guests and devices, and disabled plugins.

The file is searched in this order: ``--config``, ``$VMM_MSI_CONFIG``, ``./vmm-msi.toml``,
``$XDG_CONFIG_HOME/vmm-msi/vmm-msi.toml``, ``/etc/vmm-msi/vmm-msi.toml``. The first that exists is
used, alone; without a file the defaults apply. docs/config.md describes every key.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from vmm_msi import ownership, tomlfile
from vmm_msi.errors import ConfigError, InputError, UsageError
from vmm_msi.types import PciAddress

log = logging.getLogger(__name__)

FILE_NAME = "vmm-msi.toml"
DEFAULT_STRATEGY = "identity"
DEFAULT_SELECTOR = "first-in-group"


class DeviceTable(tomlfile.TomlTable, frozen=True):
    """``[[domain.device]]``: one device of a libvirt domain."""

    address: str
    strategy: str


class DomainTable(tomlfile.TomlTable, frozen=True):
    """``[[domain]]``: one libvirt domain, by name."""

    name: str
    strategy: str | None = None
    its_selector: str | None = None
    device: list[DeviceTable] = msgspec.field(default_factory=list)


class PluginsTable(tomlfile.TomlTable, frozen=True):
    """``[plugins]``."""

    disabled: list[str] = msgspec.field(default_factory=list)


class ConfigTable(tomlfile.TomlTable, frozen=True):
    """The whole file."""

    strategy: str = DEFAULT_STRATEGY
    its_selector: str = DEFAULT_SELECTOR
    domain: list[DomainTable] = msgspec.field(default_factory=list)
    strategies: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    plugins: PluginsTable = msgspec.field(default_factory=PluginsTable)


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy by name, with its options as text or TOML values.

    :param profile: the kernel profile that the user selects; None for the newest that fits.
    """

    strategy: str
    options: tuple[tuple[str, Any], ...] = ()
    profile: str | None = None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Parse ``NAME[:key=value,…]``; ``profile`` is an option of every strategy.

        :raise UsageError: when the text has another form.
        """
        name, colon, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")] if colon else []
        if not name or any(not key or not equals for key, equals, _value in pairs):
            raise UsageError(f"strategy {text!r}: not of the form NAME[:key=value,…]")
        options = {key: value for key, _equals, value in pairs}
        if len(options) != len(pairs):
            raise UsageError(f"strategy {text!r}: an option is given twice")
        return cls.of(name, options)

    @classmethod
    def of(cls, name: str, options: dict[str, Any]) -> Choice:
        """Return the choice of a strategy and its options, ``profile`` among them."""
        kept = {key: value for key, value in options.items() if key != "profile"}
        return cls(name, tuple(sorted(kept.items())), options.get("profile"))

    def __str__(self) -> str:
        shown = [*self.options, *([("profile", self.profile)] if self.profile else [])]
        options = ",".join(f"{key}={value}" for key, value in shown)
        return f"{self.strategy}:{options}" if options else self.strategy


@dataclass(frozen=True)
class Config:
    """The configuration: the content of a file, or the defaults.

    :param path: the file; None for the defaults.
    :param is_named: the user named the file; one of the search path cannot disable observers, which
        may veto actions.
    """

    table: ConfigTable = field(default_factory=ConfigTable)
    path: Path | None = None
    is_named: bool = True

    def choice(self, domain: str, device: PciAddress, named: Choice | None = None) -> Choice:
        """Return the strategy for a device of a libvirt domain.

        :param named: the choice on the command line; its options override those of the file.
        """
        name = named.strategy if named is not None else self._strategy(domain, device)
        options = dict(self.table.strategies.get(name, {}))
        if named is not None:
            options |= dict(named.options)
            if named.profile is not None:
                options["profile"] = named.profile
        return Choice.of(name, options)

    def _strategy(self, domain: str, device: PciAddress) -> str:
        table = self._domain(domain)
        if table is None:
            return self.table.strategy
        for entry in table.device:
            if PciAddress.parse(entry.address) == device:
                return entry.strategy
        return table.strategy or self.table.strategy

    def its_selector(self, domain: str) -> str:
        """Return the ITS selector for a libvirt domain."""
        table = self._domain(domain)
        return (table.its_selector if table is not None else None) or self.table.its_selector

    def _domain(self, name: str) -> DomainTable | None:
        return next((table for table in self.table.domain if table.name == name), None)

    def names(self) -> tuple[set[str], set[str]]:
        """Return the strategies and the ITS selectors that the file names."""
        table = self.table
        strategies = {table.strategy, *table.strategies}
        strategies |= {domain.strategy for domain in table.domain if domain.strategy}
        strategies |= {device.strategy for domain in table.domain for device in domain.device}
        selectors = {table.its_selector}
        selectors |= {domain.its_selector for domain in table.domain if domain.its_selector}
        return strategies, selectors


def search_path() -> list[Path]:
    """Return the paths that are searched if no configuration is named, first to last."""
    xdg = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # Relative paths are ignored: XDG Base Directory Specification.
    home = xdg if xdg.is_absolute() else Path.home() / ".config"
    return [Path(FILE_NAME), home / "vmm-msi" / FILE_NAME, Path("/etc/vmm-msi") / FILE_NAME]


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read the configuration, and log which file it is.

    A file of the search path is ignored, with a warning, if another user may change it or the
    folder that it is in: that user would configure this one's commands, possibly root's.

    :param path: the file; None for ``$VMM_MSI_CONFIG``, else the search path.
    :raise ConfigError: when a named file is missing, or the file is invalid.
    """
    named = (Path(path) if path else None) or (
        Path(env) if (env := os.environ.get("VMM_MSI_CONFIG")) else None
    )
    file = named or next(filter(_is_usable, search_path()), None)
    if file is None:
        return Config()
    table = tomlfile.read(file, ConfigTable, ConfigError)
    _check(table, file)
    log.info("configuration: %s", file)
    return Config(table, file, is_named=named is not None)


def _is_usable(path: Path) -> bool:
    """Return whether a file of the search path exists and no other user may change it."""
    try:
        if not path.is_file():
            return False
        weak = ownership.weakness(path.parent) or ownership.weakness(path)
    except OSError as error:
        raise ConfigError(
            f"looking for {path}: {error.strerror}; name a configuration with --config"
        ) from error
    if weak is not None:
        log.warning("configuration %s is ignored: %s; --config %s uses it", path, weak, path)
    return weak is None


def _check(table: ConfigTable, path: Path) -> None:
    seen: set[str] = set()
    for domain in table.domain:
        if domain.name in seen:
            raise ConfigError(f"{path}: [[domain]] {domain.name!r} is given twice")
        seen.add(domain.name)
        devices: set[PciAddress] = set()
        for device in domain.device:
            try:
                address = PciAddress.parse(device.address)
            except InputError as error:
                raise ConfigError(f"{path}: [[domain]] {domain.name!r}: {error}") from error
            if address in devices:
                raise ConfigError(
                    f"{path}: [[domain]] {domain.name!r}: device {address} is given twice"
                )
            devices.add(address)
