"""How a fault comes about, with placeholders for addresses and names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """How a fault comes about.

    ``why``, ``missing`` and ``remedies`` may have the placeholders that
    :mod:`vmm_msi.explain.faults` fills in.

    :param missing: the mapping that is missing.
    :param remedies: changes that fix it.
    :param on_host: changes of the host, out of reach from within the guest.
    :param strategies: another strategy may fix it.
    :param ignores_rmr: it shows that the guest does not map the MSI window.
    :param findings: ids of the doctor's findings about the same problem.
    """

    why: str
    missing: str = ""
    remedies: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()
    strategies: bool = False
    ignores_rmr: bool = False
    findings: tuple[str, ...] = ()
