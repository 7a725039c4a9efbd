"""Bind in the kernel by hand: what is refused before the kernel is asked; the lab binds."""

from __future__ import annotations

import pytest
from watch.helpers import A, node_file, running

from vmm_msi import bind, unbind
from vmm_msi.cli import main
from vmm_msi.errors import UsageError


@pytest.mark.parametrize("call", [bind, unbind])
def test_a_guest_that_does_not_run_on_this_machine(call, tmp_path):
    refused = pytest.raises(UsageError, match="do not run on it; use the machine's own QEMU")
    with running(node_file(tmp_path), A) as connection, refused:
        call(connection, "guest0")


def test_the_command_refuses_it_as_well(capsys):
    assert main(["bind", "test", "-c", "test:///default"]) == 2
    assert "the guests at test:///default do not run on it" in capsys.readouterr().err
