"""Test a plugin of your own: fixtures for pytest, sample scenarios and the conformance suite.

``pytest --pyargs vmm_msi.testing --vmm-msi-strategy NAME`` runs the suite on an installed strategy;
docs/plugins.md describes the fixtures. pytest is in the extra ``testing``.

This module imports nothing, since every run of pytest with vmm-msi installed imports it.
"""
