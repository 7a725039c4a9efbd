"""What a report was made from: version, date and command line."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def provenance(args: argparse.Namespace) -> dict[str, str]:
    """Return version, date and command line.

    SOURCE_DATE_EPOCH sets the date (https://reproducible-builds.org/specs/source-date-epoch/).

    :param args: with the words of the command line as ``words``.
    """
    from vmm_msi import __version__

    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return {
        "tool": f"vmm-msi {__version__}",
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(["vmm-msi", *args.words]),
    }
