"""Apply a planned change, or leave everything as it was."""

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
    """Apply a planned change; undo all of it on any failure.

    It takes the host lock, and checks that the guest did not change since the change was planned
    and that no other guest got one of the devices.

    :param plugins: plugins whose observers are notified; None for none.
    :raise HypervisorError: if the guest changed since, if libvirt refuses or drops a part, or if a
        running guest does not release a device; everything is as it was.
    :raise UndoError: if something could not be undone, or if the connection was lost and the state
        is unknown.
    """
    with host_lock.held(connection.hostname()):
        state = connection.state(change.old.name)
        pairs: list[tuple[DomainXml, DomainXml | None]] = [(change.old, state.definition)]
        if change.live is not None:
            pairs.append((change.live.old, state.running))
        if any(str(planned) != str(current) for planned, current in pairs):
            raise HypervisorError(
                f"changing {change.old.name}: another program changed it since this was planned; "
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
    """Apply a change that was planned under the host lock, which the caller still holds.

    The definition first, which can be restored in one call, then the running guest, device by
    device.

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

    A device is recorded before it is plugged in, so that it can be detached wherever this stops.
    """
    moved: list[tuple[PciAddress, str]] = []
    try:
        if live.plugging:
            _write_record(connection, live.new)
        for device, xml in live.devices:
            # Before the call: a call that fails halfway is undone, too.
            moved.append((device, xml))
            _move(connection, live, device, xml, into=live.plugging)
        if not live.plugging:
            _write_record(connection, live.new)
    except BaseException as failure:
        problems = _undo_live(connection, live, moved)
        if problems:
            from vmm_msi.libvirt_driver import undo_error

            problem = f"undoing it in the running guest failed too: {'; '.join(problems)}"
            raise undo_error(connection, live.old.name, failure, problem) from failure
        raise


def _undo_live(
    connection: Connection, live: LiveChange, moved: list[tuple[PciAddress, str]]
) -> list[str]:
    """Move the devices back and update the record; return what failed.

    A device that stays plugged in is recorded, so that detaching it can be tried again.
    """
    problems = []
    stuck = set()
    for device, xml in reversed(moved):
        try:
            _move(connection, live, device, xml, into=not live.plugging)
        except VmmMsiError as again:
            state = "plugged in" if live.plugging else "unplugged"
            problems.append(f"{device} may be {state}: {again}")
            stuck.add(device)
    remaining = live.old
    if live.plugging and stuck:
        remaining = live.new
        for device, _xml in live.devices:
            if device not in stuck:
                remaining = editor.unplug(remaining, device)
    try:
        _write_record(connection, remaining)
    except VmmMsiError as again:
        problems.append(str(again))
    return problems


def _move(
    connection: Connection, live: LiveChange, device: PciAddress, xml: str, *, into: bool
) -> None:
    """Plug or unplug one device, unless it is so already, and wait until it is.

    :raise HypervisorError: if libvirt refuses, or the guest does not release it in time.
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
                    f"plugging {device} into the running {name}: libvirt accepted the call, but "
                    f"the guest does not have it after {live.release_s:g} s"
                )
            # QEMU has no way to withdraw the request.
            raise HypervisorError(
                f"unplugging {device} of the running {name}: libvirt accepted the call, but the "
                f"guest did not release it after {live.release_s:g} s; check that its operating "
                "system is up and does not use the device. It may still release it: status "
                "--scope live shows whether it did, then detach it again"
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
