"""A host with as many devices as are asked for, and what the commands find about it."""

from __future__ import annotations

from dataclasses import replace

from doctor.cases import HEALTHY, function, host_device

from vmm_msi.types import PciAddress

DRIVERS = ("nvme", "mlx5_core", "ice")


def large_case(count):
    """Return a case whose host has ``count`` devices behind two SMMUs and two ITSes.

    The host uses each of them, each is in a group of its own.
    """
    addresses = tuple(
        PciAddress(number % 2, 1 + number // 512, number // 16 % 32, number // 2 % 8)
        for number in range(count)
    )
    places = {address: {"smmu": address.segment} for address in addresses}
    host = replace(
        HEALTHY.host,
        devices=tuple(
            host_device(address, its=(address.segment,), group=number, **places[address])
            for number, address in enumerate(addresses)
        ),
        functions=tuple(
            function(
                address, group=number, driver=DRIVERS[number % len(DRIVERS)], **places[address]
            )
            for number, address in enumerate(addresses)
        ),
    )
    return replace(HEALTHY, host=host, devices=addresses)
