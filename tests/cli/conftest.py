import os

import json_schemas
import pytest

from vmm_msi.cli import main


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """Work in an empty folder, away from any configuration of the user's."""
    for name in [name for name in os.environ if name.startswith(("VMM_MSI_", "XDG_", "LIBVIRT_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def columns():
    """Return the width of the terminal; a module that is about wrapping has its own."""
    return 1000


@pytest.fixture
def vmm_msi(capfd, monkeypatch, columns):
    """Run a command line in this process; return exit code, standard output and error.

    What C libraries print is seen too. A JSON document has to match its schema.
    """
    monkeypatch.setenv("COLUMNS", str(columns))

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        json_schemas.check_output(words, code, out, err)
        return code, out, err

    return run
