"""A doctor rule, a host reader and a report format, as another distribution has them."""

from __future__ import annotations

from vmm_msi.plugins import (
    DoctorRule,
    Evidence,
    Finding,
    Granule,
    HostReader,
    HostTopology,
    Its,
    Pa,
    PciRoute,
    ReportFormat,
    Severity,
    Smmu,
    TopologyError,
)

MAGIC = b"SITE-HOST 1\n"
PAGE = "# site-two-its: Two ITSes\n\n## What is checked\n\nThe number of ITSes.\n"


class Site(DoctorRule):
    """Refuses hosts with more than one ITS."""

    name = "site"
    summary = "one ITS per host here"

    def vmm_msi_examine(self, examined):
        if len(examined.host.itses) > 1:
            yield Finding(
                id="site-two-its",
                severity=Severity.ERROR,
                subject="host",
                evidence=(Evidence(examined.host.source, f"{len(examined.host.itses)} ITSes"),),
                consequence="We do not run hosts with several ITSes.",
                remedy="Use another host.",
            )

    def vmm_msi_finding_page(self, finding):
        return {"site-two-its": PAGE}.get(finding)


class SiteHost(HostReader):
    """Reads a line with the base of each ITS."""

    name = "site-host"
    summary = "our inventory's list of ITSes"

    def vmm_msi_read_host(self, name, content):
        if not content.startswith(MAGIC):
            return None
        try:
            bases = [int(line, 16) for line in content[len(MAGIC) :].split()]
        except ValueError as error:
            raise TopologyError(f"{name}: not the base of an ITS: {error}") from error
        itses = tuple(Its(number, Pa(base)) for number, base in enumerate(bases))
        route = PciRoute(0, 0, 0xFFFF, 0, 0, tuple(its.id for its in itses), 0)
        return HostTopology(name, Granule.K4, (Smmu(0),), itses, (), routes=(route,))


class Names(ReportFormat):
    """Writes the names of the strategies."""

    name = "names"
    summary = "a line for each strategy"

    def vmm_msi_format_comparison(self, document):
        return "".join(f"{result['strategy']}\n" for result in document["results"]).encode()
