"""What the commands do, as functions for programs: each returns a value with ``to_json``.

:mod:`vmm_msi` exports them, and the command line calls them too, so that both give one answer.
``hosts``, ``guests`` and ``settings`` read what the others need. ``examination`` is
``vmm-msi doctor``, ``comparison`` is ``vmm-msi compare``, ``explanation`` is ``vmm-msi explain``.
"""
