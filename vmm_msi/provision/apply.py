"""Carry a planned change out, or leave everything as it was."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vmm_msi.domxml import editor
from vmm_msi.domxml.metadata import NAMESPACE, PREFIX, bare_record, read_record
from vmm_msi.errors import HypervisorError, VmmMsiError
from vmm_msi.provision import host_lock

if TYPE_CHECKING:
    from vmm_msi.domxml.libvirt_domain import DomainXml
    from vmm_msi.libvirt_driver import Connection
    from vmm_msi.plugins.manager import PluginManager
    from vmm_msi.provision.request import Change, LiveChange
    from vmm_msi.types import PciAddress

_POLL_S = 0.05


def apply_change(
    connection: Connection, change: Change, plugins: PluginManager | None = None
) -> None:
    """Carry out a change that was planned before; undo all of it on any failure.

    It waits for its turn, and looks whether the guest is still what the change was planned from,
    and whether no other guest got one of the devices meanwhile.

    :param plugins: whose observers learn of it, None for nobody.
    :raise HypervisorError: when the guest was changed meanwhile, when libvirt refuses or drops a
        part, or when a running guest does not give a device back; everything is as it was.
    :raise UndoError: when something is not, or when the connection was lost and nobody can tell.
    """
    with host_lock.held(connection.hostname()):
        state = connection.state(change.old.name)
        now: list[tuple[DomainXml, DomainXml | None]] = [(change.old, state.definition)]
        if change.live is not None:
            now.append((change.live.old, state.running))
        if any(str(planned) != str(found) for planned, found in now):
            raise HypervisorError(
                f"changing {change.old.name}: somebody else changed it since this was planned; "
                "nothing was done, plan it again"
            )
        added = _hosts(change.after) - _hosts(change.before)
        for device, holder in connection.assigned() if added else ():
            if device in added and holder != change.old.name:
                raise HypervisorError(
                    f"changing {change.old.name}: domain {holder} got {device} since this was "
                    "planned; nothing was done, plan it again"
                )
        apply_change_locked(connection, change, plugins)


def apply_change_locked(
    connection: Connection, change: Change, plugins: PluginManager | None = None
) -> None:
    """Carry out a change that was planned in the same turn (:func:`~.turns.turn`).

    First the definition, which can be put back at once, then device by device what runs.

    :raise HypervisorError: see :func:`apply_change`.
    :raise UndoError: see :func:`apply_change`.
    """
    error = ""
    try:
        _apply(connection, change)
    except BaseException as failure:
        error = str(failure) or type(failure).__name__
        raise
    finally:
        if plugins is not None and plugins.has_observers:
            for event in change.events:
                plugins.notify(replace(event, error=error))


def _apply(connection: Connection, change: Change) -> None:
    # Late, so that planning an edit of a file needs no libvirt.
    from vmm_msi.libvirt_driver import redefine

    live = change.live
    make_live = None if live is None else partial(_make_live, connection, live)
    if change.new is not change.old:
        redefine(connection, change.old.name, change.old, change.new, make_live)
    elif make_live is not None:
        make_live()


def _make_live(connection: Connection, live: LiveChange) -> None:
    """Plug or unplug every device and record it, or none.

    What is plugged in is recorded at any moment, so that whatever ends this, it can be taken out.
    """
    done: list[tuple[PciAddress, str]] = []
    try:
        if live.plugging:
            _write_record(connection, live.new)
        for device, xml in live.devices:
            # Before the call: one that fails halfway is looked at, too.
            done.append((device, xml))
            _move(connection, live, device, xml, into=live.plugging)
        if not live.plugging:
            _write_record(connection, live.new)
    except BaseException as failure:
        problems = _undo_live(connection, live, done)
        if problems:
            from vmm_msi.libvirt_driver import undo_error

            problem = f"undoing it in the running guest failed too: {'; '.join(problems)}"
            raise undo_error(connection, live.old.name, failure, problem) from failure
        raise


def _undo_live(
    connection: Connection, live: LiveChange, done: list[tuple[PciAddress, str]]
) -> list[str]:
    """Move the devices back and record that; return what failed of it.

    A device that stays plugged is recorded, so that detaching it from what runs can be tried again.
    """
    problems = []
    stuck = set()
    for device, xml in reversed(done):
        try:
            _move(connection, live, device, xml, into=not live.plugging)
        except VmmMsiError as again:
            problems.append(f"{device} may be {'in it' if live.plugging else 'out of it'}: {again}")
            stuck.add(device)
    left = live.old
    if live.plugging and stuck:
        left = live.new
        for device, _xml in live.devices:
            left = left if device in stuck else editor.unplug(left, device)
    try:
        _write_record(connection, left)
    except VmmMsiError as again:
        problems.append(str(again))
    return problems


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
    return device in _hosts(connection.domain_xml(name, inactive=False))


def _hosts(xml: DomainXml) -> set[PciAddress]:
    return {hostdev.host for hostdev in xml.hostdevs()}


def _write_record(connection: Connection, xml: DomainXml) -> None:
    record = read_record(xml)
    text = None if record is None else bare_record(record)
    connection.set_live_metadata(str(xml.uuid), NAMESPACE, PREFIX, text)
