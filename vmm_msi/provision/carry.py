"""Carry a planned change out, or leave everything as it was."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.domxml.metadata import NAMESPACE, PREFIX, bare_record, read_record
from vmm_msi.errors import HypervisorError
from vmm_msi.provision.turns import turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_msi.domxml.domain import DomainXml
    from vmm_msi.host import PluginHost
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.model import PciAddress
    from vmm_msi.provision.request import Change, LiveChange

_POLL_S = 0.05


def carry_out(connection: Connection, change: Change, plugins: PluginHost | None = None) -> None:
    """Carry out a change that was planned before; undo all of it on any failure.

    It waits for its turn, and looks whether the guest is still what the change was planned from.

    :param plugins: whose observers learn of it, None for nobody.
    :raise HypervisorError: when the guest was changed meanwhile, when libvirt refuses or drops a
        part, or when a running guest does not give a device back; everything is as it was.
    """
    with turn(connection.hostname()):
        state = connection.state(change.old.name)
        now: list[tuple[DomainXml, DomainXml | None]] = [(change.old, state.definition)]
        if change.live is not None:
            now.append((change.live.old, state.running))
        if any(str(planned) != str(found) for planned, found in now):
            raise HypervisorError(
                f"changing {change.old.name}: somebody else changed it since this was planned; "
                "nothing was done, plan it again"
            )
        carry_out_in_turn(connection, change, plugins)


def carry_out_in_turn(
    connection: Connection, change: Change, plugins: PluginHost | None = None
) -> None:
    """Carry out a change that was planned in the same turn (:func:`~.turns.turn`).

    First the definition, which can be put back at once, then device by device what runs.

    :raise HypervisorError: see :func:`carry_out`.
    """
    error = ""
    try:
        with _defined(connection, change):
            if change.live is not None:
                _make_live(connection, change.live)
    except BaseException as failure:
        error = str(failure) or type(failure).__name__
        raise
    finally:
        if plugins is not None and plugins.has_observers:
            for event in change.events:
                plugins.tell(replace(event, error=error))


@contextmanager
def _defined(connection: Connection, change: Change) -> Iterator[None]:
    """Define the new XML; put the old one back where what follows fails."""
    if change.new is change.old:
        yield
        return
    # Late, so that planning an edit of a file needs no libvirt.
    from vmm_msi.libvirt_driver import redefine

    redefine(connection, change.old.name, change.old, change.new)
    try:
        yield
    except BaseException as failure:
        try:
            connection.define(change.old, validate=False)
        except HypervisorError as again:
            raise HypervisorError(
                f"{failure}; and putting the old definition back failed too: {again}"
            ) from failure
        raise


def _make_live(connection: Connection, live: LiveChange) -> None:
    """Plug or unplug every device and record it, or none."""
    done: list[tuple[PciAddress, str]] = []
    try:
        for device, xml in live.devices:
            # Before the call: one that fails halfway is looked at, too.
            done.append((device, xml))
            _move(connection, live, device, xml, into=live.plugging)
        _write_record(connection, live.new)
    except BaseException as failure:
        problems = []
        for device, xml in reversed(done):
            try:
                _move(connection, live, device, xml, into=not live.plugging)
            except HypervisorError as again:
                problems.append(str(again))
        try:
            _write_record(connection, live.old)
        except HypervisorError as again:
            problems.append(str(again))
        if problems:
            raise HypervisorError(
                f"{failure}; and undoing it in the running guest failed too: {'; '.join(problems)}"
            ) from failure
        raise


def _move(
    connection: Connection, live: LiveChange, device: PciAddress, xml: str, *, into: bool
) -> None:
    """Plug or unplug one device and wait until it is there or gone; nothing where it is so already.

    :raise HypervisorError: when libvirt refuses, or the guest does not give it back in time.
    """
    name = live.old.name
    if _has(connection, name, device) == into:
        return
    if into:
        connection.plug(name, xml)
    else:
        connection.unplug(name, xml)
    deadline = time.monotonic() + live.release_s
    while _has(connection, name, device) != into:
        if time.monotonic() > deadline:
            if into:
                raise HypervisorError(
                    f"plugging {device} into the running {name}: libvirt took the call, and after "
                    f"{live.release_s:g} s it is not in it"
                )
            # QEMU has no way to take the request back.
            raise HypervisorError(
                f"unplugging {device} of the running {name}: libvirt took the call, and after "
                f"{live.release_s:g} s the guest does not give it back; is its operating system "
                "up, and not using the device? It may still give it back: status --scope live "
                "tells, and then detach it again"
            )
        time.sleep(_POLL_S)


def _has(connection: Connection, name: str, device: PciAddress) -> bool:
    running = connection.domain_xml(name, inactive=False)
    return any(hostdev.host == device for hostdev in running.hostdevs())


def _write_record(connection: Connection, xml: DomainXml) -> None:
    record = read_record(xml)
    text = None if record is None else bare_record(record)
    connection.set_live_metadata(str(xml.uuid), NAMESPACE, PREFIX, text)
