"""Any sequence of attaching and detaching ends, when all is detached, with the original text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from depth import depth
from hypothesis import given, settings
from hypothesis import strategies as st
from provision.helpers import DEVICES, HOST, attach, detach, node, node_file, texts

from vmm_msi.domxml.metadata import read_record
from vmm_msi.domxml.support import Feature
from vmm_msi.errors import RefusedError

#: Strategies that take any of the devices together, as far as libvirt can express it.
STRATEGIES = ["identity", "multi-its", "multi-its:mode=vsmmu"]


@pytest.fixture(scope="module")
def file():
    with tempfile.TemporaryDirectory() as folder:
        yield node_file(Path(folder))


def fits(connection, strategy, devices):
    """Return whether libvirt can express the vSMMUs that ``devices`` need."""
    if connection.versions().support().has(Feature.PCI_BUS):
        return True
    smmus = {HOST.routes[device.segment].smmu for device in devices}
    return len(devices if strategy.endswith("vsmmu") else smmus) == 1


steps = st.lists(
    st.tuples(
        st.sampled_from(["attach", "detach"]),
        st.lists(st.sampled_from(DEVICES), min_size=1, max_size=3, unique=True),
    ),
    max_size=12,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=depth(60), deadline=None)
@given(steps=steps)
def test_any_sequence_ends_with_the_original_text(file, strategy, steps):
    with node(file) as connection:
        original = texts(connection)
        attached = []
        for action, devices in steps:
            before = texts(connection)
            if action == "attach":
                new = [device for device in devices if device not in attached]
                combined = [*attached, *new]
                if not new:
                    # They are attached in this way already.
                    assert attach(connection, *devices, strategy=strategy).verdicts == ()
                    assert texts(connection) == before
                elif fits(connection, strategy, combined):
                    change = attach(connection, *devices, strategy=strategy)
                    attached = combined
                    programmed = {v.programmed for v in change.verdicts}
                    assert strategy == "multi-its" or len(programmed) == len(attached)
                else:
                    with pytest.raises(RefusedError):
                        attach(connection, *devices, strategy=strategy)
                    assert texts(connection) == before
            elif set(devices) <= set(attached):
                detach(connection, *devices)
                attached = [device for device in attached if device not in devices]
            xml = connection.domain_xml("guest0")
            record = read_record(xml)
            assert (record is None) == (not attached)
            assert record is None or [device.host for device in record.devices] == attached
            assert sorted(hostdev.host for hostdev in xml.hostdevs()) == sorted(attached)
        if attached:
            detach(connection)
        assert texts(connection) == original
