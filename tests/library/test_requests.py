"""Requests made of text, as on the command line, and of values that no request can have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from provision.helpers import A, B

import vmm_msi
from vmm_msi import AttachRequest, BinderKind, Choice, DetachRequest, Scope, VmmMsiError
from vmm_msi.errors import InputError, UsageError

#: A value of any type that a program may pass by mistake.
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.text(), st.integers(), st.none())),
    st.dictionaries(st.text(), st.one_of(st.text(), st.integers())),
    st.builds(object),
)
FIELDS = tuple(AttachRequest.__dataclass_fields__)


def test_text_is_read_as_on_the_command_line():
    request = AttachRequest(
        "guest0",
        ("0000:01:00.0", "pci_0001_01_00_0"),
        "multi-its:mode=s2",
        "sim",
        scope="both",
        driver="oas=48,ats=off",
    )
    assert request == AttachRequest(
        "guest0",
        (A, B),
        Choice("multi-its", (("mode", "s2"),)),
        BinderKind.SIM,
        scope=Scope.BOTH,
        driver={"oas": "48", "ats": "off"},
    )
    assert replace(request, scope="live").scope is Scope.LIVE
    assert DetachRequest("guest0", "0000:01:00.0", "live") == DetachRequest(
        "guest0", (A,), Scope.LIVE
    )


@pytest.mark.parametrize("devices", ["0000:01:00.0", A, ["01:00.0"], iter([A])])
def test_one_device_or_several(devices):
    assert AttachRequest("guest0", devices).devices == (A,)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"devices": ("01:00",)}, InputError, "PCI address '01:00': not of the form 0000:01:00.0"),
        ({"devices": ()}, UsageError, "attaching to guest0: no device; name one or several"),
        ({"devices": 5}, UsageError, "devices 5: not PCI addresses; use a tuple"),
        ({"devices": (None,)}, UsageError, "device None: not a PCI address; use a text"),
        ({"strategy": "multi-its:mode"}, UsageError, "not of the form NAME"),
        ({"strategy": 5}, UsageError, "strategy 5: not of the form NAME"),
        ({"binder": "qemo"}, UsageError, "backend 'qemo': unknown; did you mean qemu"),
        ({"scope": "all"}, UsageError, "scope 'all': unknown; valid: config, live, both"),
        ({"driver": "oas"}, UsageError, "vSMMU properties 'oas': not of the form KEY=VALUE"),
        ({"driver": {"oas": 48}}, UsageError, "vSMMU property 48: not a text"),
        ({"driver": 48}, UsageError, "vSMMU properties 48: use a text"),
        ({"domain": None}, UsageError, "guest None: not a text"),
        ({"domain": "guest\0"}, UsageError, r"guest 'guest\\x00': has a NUL"),
        ({"fdgroup": 7}, UsageError, "file descriptor group 7: not a text"),
        ({"fdgroup": "a\x1bb"}, UsageError, "file descriptor group 'a.x1bb': has characters"),
        ({"spare_ports": "2"}, UsageError, "spare ports '2': not a whole number"),
        ({"spare_memory": True}, UsageError, "spare memory True: not a whole number"),
        ({"managed": "no"}, UsageError, "managed 'no': valid: True, False"),
        ({"allow_faults": 1}, UsageError, "allow_faults 1: valid: True, False"),
    ],
)
def test_a_wrong_value_is_named(fields, error, message):
    with pytest.raises(error, match=message) as raised:
        AttachRequest(**{"domain": "guest0", "devices": (A,), **fields})
    assert raised.value.code in {"usage", "input"}


def test_a_wrong_release_time_is_named():
    with pytest.raises(UsageError, match="release timeout 'soon': not a number of seconds"):
        DetachRequest("guest0", release_s="soon")


def refusal(make, fields):
    """Return the code of the error that a request is refused with; None if it is made."""
    try:
        request = make(**{"domain": "guest0", **fields})
    except VmmMsiError as error:
        return error.code
    assert all(isinstance(device, vmm_msi.PciAddress) for device in request.devices)
    return None


@given(st.sampled_from(FIELDS), ANYTHING)
def test_any_value_is_taken_or_refused_with_a_code(field, value):
    assert refusal(AttachRequest, {"devices": (A,), field: value}) in {None, "usage", "input"}


@given(st.sampled_from(tuple(DetachRequest.__dataclass_fields__)), ANYTHING)
def test_any_value_of_a_detach_is_taken_or_refused_with_a_code(field, value):
    assert refusal(DetachRequest, {field: value}) in {None, "usage", "input"}
