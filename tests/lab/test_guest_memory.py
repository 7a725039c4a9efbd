"""Read a device of a guest through libvirt: the guest is the emulated host, on real QEMU."""

from __future__ import annotations

import libvirt  # noqa: TID251 - the flag of a call that the product does not make
import pytest

from vmm_msi.iommu.linux import msi

pytestmark = pytest.mark.lab_root

ECAM = 0x40_1000_0000
#: A root port behind the first expander bus.
PORT = ECAM + (0x10 << 20)


def test_configuration_space_is_read_without_tainting_the_guest(lab_host):
    connection = lab_host._connection
    (uuid,) = connection.running()
    domain = connection._raw.lookupByUUIDString(uuid)
    before = domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING)
    assert connection.memory(uuid, ECAM, 4) == bytes.fromhex("361b0800")
    config = connection.memory(uuid, PORT, msi.CONFIG_BYTES)
    assert msi.PCI_CAP_ID_MSIX in msi.capabilities(config)
    assert domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING) == before
    words = lab_host.words(PORT, 4)
    assert b"".join(word.to_bytes(4, "little") for word in words) == config[:16]
    tainted = domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING)
    assert any("monitor" in message for message in tainted)
