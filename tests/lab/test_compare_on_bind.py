"""``compare --backend lab --doorbells its`` on the kernel with guest MSI bindings, with real ITSes.

``compare`` uses the host that runs, with whatever kernel it has: one boot for the rows with two
ITSes. Real guests run those with one (``test_compare_guests.py``).
"""

from __future__ import annotations

import json

import pytest
from lab.conftest import own_run_folder
from scenarios import pair
from test_truth_table import PROPOSED, STRATEGIES, TABLE, cells

from vmm_msi.cli import main

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def bind_host(its_emulator, bind_images):
    """A running lab with the kernel ``bind`` and two ITSes."""
    with own_run_folder():
        assert main(["lab", "up", "--kernel", "bind", "--itses", "2"]) == 0
        yield


ROWS = [row for row in TABLE if row[0] == 2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row[:4])))
def test_row_of_the_truth_table(row, bind_host, capsys, tmp_path):
    """The kernel keeps the bindings, and each MSI arrives at its device's own ITS, or does not.

    A device that is refused an address can be used again by the next strategy.
    """
    pits, mode, vits, order, expected = row
    path = tmp_path / "scenario.toml"
    path.write_text(pair(mode, pits=pits, vits=vits, order=order).toml())
    columns = {name: column for name, column in STRATEGIES.items() if name not in PROPOSED}
    strategies = [word for name in columns for word in ("--strategy", name)]
    options = ["--backend", "lab", "--doorbells", "its", "--format", "json"]
    assert main(["compare", "--scenario", str(path), *options, *strategies]) == 0
    captured = capsys.readouterr()
    assert "using the running lab" in captured.err
    results = json.loads(captured.out)["results"]
    for (name, column), result in zip(columns.items(), results, strict=True):
        assert cells(result) == expected[column], (name, result)
