"""The log of the service: one line per event."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timedelta

import pytest

from vmm_msi.types import Iova, PciAddress
from vmm_msi.watch.service_log import LogEvent, log_event, logging_to


def lines(as_json, **fields):
    out = io.StringIO()
    with logging_to(out, as_json=as_json):
        log_event(LogEvent.BOUND, **fields)
        logging.getLogger("vmm_msi.plugins.manager").warning("observer %s failed", "x")
    return out.getvalue().splitlines()


def test_json():
    first, second = map(
        json.loads,
        lines(
            as_json=True,
            domain="a\nb\u2028",
            device=PciAddress(0, 1, 0, 0),
            programmed=Iova(0x8000040),
            seconds=0.5,
            count=3,
            missing=None,
        ),
    )
    time = datetime.fromisoformat(first.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert first == {
        "level": "info",
        "event": "bound",
        "domain": "a\nb\u2028",
        "device": "0000:01:00.0",
        "programmed": "0x8000040",
        "seconds": 0.5,
        "count": 3,
    }
    second.pop("time")
    assert second == {"level": "warning", "event": "message", "message": "observer x failed"}


def test_text():
    first, second = lines(as_json=False, domain="a\nb", uri="x?y=z", device="d")
    assert first.split(" ", 1)[1] == r'info bound domain="a\nb" uri="x?y=z" device=d'
    assert first.split(" ", 1)[0].endswith("Z")
    assert second.split(" ", 1)[1] == 'warning message message="observer x failed"'


def test_the_logger_is_restored(capsys):
    lines(as_json=True)
    root = logging.getLogger("vmm_msi")
    assert (root.handlers, root.propagate, root.level) == ([], True, logging.NOTSET)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("event", list(LogEvent))
def test_names_match_their_values(event):
    assert event.value == event.name.lower().replace("_", "-")
