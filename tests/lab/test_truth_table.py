"""The truth table of real guests: its rows, its agreement with the simulator, its report."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import pairwise

import json_schemas
import pytest
from scenarios import pair

from vmm_msi.cli import main
from vmm_msi.cli.lab_compare_guests import predictor
from vmm_msi.config import Choice
from vmm_msi.engine.binders import kernel_allocator
from vmm_msi.engine.setup import needs_of
from vmm_msi.host.scenario import parse_scenario
from vmm_msi.lab.guest.cells import TableResult
from vmm_msi.lab.guest.truth_table import (
    COLUMNS,
    Cell,
    DeviceCell,
    Row,
    Sharing,
    TableGuest,
    agreement,
    rows,
)
from vmm_msi.plugins.manager import PluginManager
from vmm_msi.report import lab_compare_guests as report
from vmm_msi.types import BindOrder, Iova, Outcome, PciAddress, Verdict

A, B = PciAddress(0, 0x11, 0, 0), PciAddress(0, 0x12, 0, 0)
SLOT, GIOVA, OTHER = Iova(0x800_0040), Iova(0xFFFF_F040), Iova(0xFFEF_F040)
FAULT = ("guest", "arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:12:00.0 sid: 0x1200")


def works(device, address):
    return DeviceCell(device, Outcome.DELIVERED, "", (address,), 50, 50, 50)


def faults(device, address):
    return DeviceCell(device, Outcome.S1_FAULT, "", (address,), 1, 0, 0, [FAULT])


def refused(device, *, arrives):
    count = 50 if arrives else 0
    return DeviceCell(device, Outcome.REFUSED, "EEXIST", (SLOT,), count or 1, count, count)


def verdict(device, outcome, address=None, number=None):
    return Verdict(
        device,
        0,
        4,
        outcome,
        None,
        0,
        programmed=address,
        errno=number and errno.ENOSPC,
        errno_inside=number,
    )


def test_every_row_of_one_its_is_there():
    table = rows()
    shown = {(row.guest.sharing, row.order) for row in table if row.guest.vsmmus == 1}
    assert shown == {
        (Sharing.SHARED, BindOrder.INTERLEAVED),
        (Sharing.OWN, BindOrder.INTERLEAVED),
        (Sharing.OWN, BindOrder.BATCHED),
        (Sharing.OWN_SAME, BindOrder.INTERLEAVED),
    }
    for row in table:
        assert replace(row, guest=replace(row.guest, rmr=not row.guest.rmr)) in table
    # A guest is started once: its rows follow each other.
    guests = [row.guest for row in table]
    assert len(set(guests)) == sum(a != b for a, b in pairwise(guests)) + 1
    # The first guest of each number of vSMMUs has QEMU's own IORT, which the others change.
    for vsmmus in (1, 2):
        first = next(guest for guest in guests if guest.vsmmus == vsmmus)
        assert first == TableGuest(vsmmus, Sharing.OWN_SAME, rmr=True)


def test_the_moved_giova_is_that_of_the_device_that_keeps_its_address():
    """A in an interleaved row, B in a batched one, of one guest."""
    guest = parse_scenario(pair("own").toml(), "test").guest
    moved, other = guest.devices
    interleaved, batched = (
        Row(TableGuest(1, Sharing.OWN, rmr=False), order).domain(guest) for order in BindOrder
    )
    assert (interleaved.devices, interleaved.order) == ((moved, other), BindOrder.INTERLEAVED)
    assert (batched.devices, batched.order) == ((other, moved), BindOrder.BATCHED)


@pytest.mark.parametrize(
    ("cell", "predicted", "rmr", "expected"),
    [
        (works(B, GIOVA), verdict(B, Outcome.DELIVERED, GIOVA), True, True),
        (works(B, SLOT), verdict(B, Outcome.DELIVERED, GIOVA), True, False),
        (works(B, GIOVA), verdict(B, Outcome.S1_FAULT, GIOVA), True, False),
        (faults(B, OTHER), verdict(B, Outcome.S1_FAULT, OTHER), True, True),
        (refused(B, arrives=True), verdict(B, Outcome.REFUSED, None, errno.EEXIST), True, True),
        (refused(B, arrives=True), verdict(B, Outcome.REFUSED), True, True),
        (refused(B, arrives=True), verdict(B, Outcome.REFUSED, None, errno.ENOMEM), True, False),
        (refused(B, arrives=False), verdict(B, Outcome.REFUSED, None, errno.EEXIST), True, False),
        (refused(B, arrives=False), verdict(B, Outcome.REFUSED, None, errno.EEXIST), False, True),
        (
            DeviceCell(B, None, "", (GIOVA,), 50, 50, 49),
            verdict(B, Outcome.DELIVERED, GIOVA),
            True,
            False,
        ),
    ],
)
def test_agreement(cell, predicted, rmr, expected):
    assert agreement(cell, predicted, rmr=rmr) is expected


def test_a_slot_that_depends_on_the_order_of_first_use_agrees():
    both = (SLOT, Iova(0x800_1040))
    predicted = replace(verdict(B, Outcome.DELIVERED, SLOT), possible=both)
    assert agreement(works(B, both[1]), predicted, rmr=True)
    assert not agreement(works(B, GIOVA), predicted, rmr=True)


@pytest.mark.parametrize(
    ("label", "order", "outcomes"),
    [
        ("identity", BindOrder.INTERLEAVED, ["delivered", "delivered"]),
        ("direct", BindOrder.BATCHED, ["delivered", "delivered"]),
        ("multi-its", BindOrder.BATCHED, ["delivered", "delivered"]),
        ("v2", BindOrder.INTERLEAVED, ["delivered", "s1-fault"]),
        ("v2", BindOrder.BATCHED, ["s1-fault", "delivered"]),
        ("v4", BindOrder.INTERLEAVED, ["delivered", "refused"]),
        ("v15", BindOrder.BATCHED, ["s1-fault", "delivered"]),
        ("v15", BindOrder.INTERLEAVED, ["delivered", "s1-fault"]),
    ],
)
def test_predictions_are_those_of_compare(label, order, outcomes):
    scenario = parse_scenario(pair("own").toml(), "test")
    (column,) = (column for column in COLUMNS if column.label == label)
    guest = replace(scenario.guest, order=order)
    verdicts = predictor(scenario.host)(guest, column.strategy)
    assert [verdict.outcome for verdict in verdicts] == outcomes


def table(*cells):
    return TableResult({"linux": "7.2.12", "libvirt": "12.8.0"}, cells, 123.4)


def cell(row, label, devices, verdicts):
    scenario = parse_scenario(pair("own").toml(), "test")
    devices_there = [
        replace(device, host=address)
        for device, address in zip(scenario.guest.devices, (A, B), strict=True)
    ]
    guest = replace(scenario.guest, devices=tuple(devices_there), honours_rmr=row.guest.rmr)
    (column,) = (column for column in COLUMNS if column.label == label)
    return Cell(row, column, guest, devices, verdicts, 1.0)


def sample():
    with_rmr, without = (Row(TableGuest(1, Sharing.OWN, rmr)) for rmr in (True, False))
    exists = [verdict(A, Outcome.DELIVERED, OTHER), verdict(B, Outcome.REFUSED, None, errno.EEXIST)]
    return table(
        cell(with_rmr, "v4", [works(A, OTHER), refused(B, arrives=True)], exists),
        cell(without, "v4", [works(A, OTHER), refused(B, arrives=False)], exists),
        cell(
            without,
            "v2",
            [works(A, OTHER), faults(B, OTHER)],
            [verdict(A, Outcome.DELIVERED, OTHER), verdict(B, Outcome.DELIVERED, OTHER)],
        ),
    )


def test_report():
    cells = sample().cells
    # A row without one of the columns would not be printed: give each row both.
    result = table(cells[1], cells[2])
    lines = list(report.to_lines(result))
    assert "own, interleaved  1       d s1 !  d no" in lines
    assert "guests without QEMU's RMR:" in lines
    assert "guests with QEMU's RMR:" not in lines
    assert "2 cells, 1 disagreement with the simulator, 123 s" in lines
    assert max(map(len, lines[: lines.index(next(i for i in lines if "cells," in i)) + 1])) <= 80
    (explanation,) = (line for line in lines if "0000:12:00.0 predicted" in line)
    assert explanation == (
        "  0000:12:00.0 predicted delivered at 0xffeff040: s1-fault at 0xffeff040, 1 read, 0 at "
        "the ITS, 0 in the guest"
    )
    assert f"    guest: {FAULT[1]}" in lines


def test_refused_device_that_keeps_its_slot_is_marked():
    lines = list(report.to_lines(table(sample().cells[0])))
    assert "own, interleaved  1       d no+" in lines


def test_strategy_with_an_s2_per_its_runs_where_qemu_has_several():
    """QEMU has one for each physical SMMU, if the guest has one iommufd object."""
    (column,) = (column for column in COLUMNS if column.s2_per_its)
    assert column.label == "multi-its"
    one, two = (TableGuest(vsmmus, Sharing.OWN_SAME, rmr=True) for vsmmus in (1, 2))
    assert column.runs_on(one, 1)
    assert not column.runs_on(one, 2)
    assert column.runs_on(two, 2)
    assert all(other.runs_on(one, 2) for other in COLUMNS if other is not column)


def test_report_of_two_itses():
    one, two = (
        Row(TableGuest(vsmmus, Sharing.OWN_SAME, rmr=True), BindOrder.INTERLEAVED)
        for vsmmus in (1, 2)
    )
    both = [verdict(A, Outcome.DELIVERED, GIOVA), verdict(B, Outcome.DELIVERED, GIOVA)]
    misrouted = DeviceCell(B, Outcome.MISROUTED, "", (GIOVA,), 1, 0, 0, misrouted=1)
    cells = table(
        cell(one, "direct", [works(A, GIOVA), misrouted], both),
        cell(two, "direct", [works(A, GIOVA), works(B, GIOVA)], both),
        cell(two, "multi-its", [works(A, GIOVA), works(B, GIOVA)], both),
    )
    lines = list(report.to_lines(replace(cells, itses=2)))
    assert lines[0].endswith("2 physical ITSes: A uses the first, B the second")
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("own-same")][:2] == [
        "1       d mis !  -",
        "2       d d      d d",
    ]
    assert any(line.startswith("  mis none did; MSIs reached another ITS") for line in lines)
    assert any(line.startswith("  -   not run: it needs a stage 2") for line in lines)
    document = report.to_json(replace(cells, itses=2))
    json_schemas.check("lab-compare-guests", document)
    assert document["itses"] == 2
    assert document["cells"][0]["devices"][1]["misrouted"] == 1


def test_json_has_what_was_measured_and_predicted():
    document = report.to_json(sample())
    json_schemas.check("lab-compare-guests", document)
    assert document["disagreements"] == 1
    first, _second, third = document["cells"]
    assert first["devices"][1]["predicted"]["errno"] == "EEXIST"
    assert first["devices"][1]["errno"] == "EEXIST"
    assert third["devices"][1]["faults"] == [{"log": "guest", "line": FAULT[1]}]
    assert third["devices"][1]["programmed_iovas"] == ["0xffeff040"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "direkt"], "did you mean direct?"),
        (["--stage1", "none"], "valid: shared, own, own-same"),
        (["--stage1", "shared", "--vsmmus", "2"], "no row is selected"),
    ],
)
def test_options_are_checked_before_a_start(options, message, capsys):
    assert main(["lab", "compare-guests", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.label)
def test_a_column_has_the_allocator_with_which_the_kernel_binds_for_its_strategy(column):
    choice = Choice.parse(column.strategy)
    needs = needs_of(PluginManager.load(), choice)
    assert column.allocator == kernel_allocator(choice, needs)
