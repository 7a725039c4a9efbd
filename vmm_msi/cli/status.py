"""``vmm-msi status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.cli.common import add_format
from vmm_msi.cli.guest import add_connection, add_target, print_record

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_connection(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show what vmm-msi recorded, and what of it is gone from the definition."""
    from vmm_msi.domxml import owned
    from vmm_msi.domxml.metadata import DomainRecord, read_record
    from vmm_msi.libvirt_driver import connect

    with connect(args.connect, readonly=True) as connection:
        xml = connection.domain_xml(args.domain)
    record = read_record(xml) or DomainRecord()
    notes = [
        f"{part} is gone from the definition: somebody took it out; detach the device and attach "
        "it again"
        for part in owned.gone(xml)
    ]
    print_record(args, xml.name, record, notes)
    return 0
