"""Write docs/schemas, the JSON Schema of each document, and check documents against them.

PYTHONPATH=tests .venv/bin/python tests/json_schemas.py
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import doc_blocks
import fastjsonschema
import msgspec

from vmm_msi.report import compare_documents, documents, system_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = doc_blocks.DOCS / "schemas"

#: The type of each document by the name of its schema.
DOCUMENTS = {
    "attach": documents.ChangeDocument,
    "bind": system_documents.BindDocument,
    "compare": compare_documents.CompareDocument,
    "compare-1": compare_documents.CompareVectorsDocument,
    "compare-worlds": compare_documents.WorldsDocument,
    "config-check": system_documents.ConfigDocument,
    "doctor": documents.DoctorDocument,
    "error": documents.ErrorDocument,
    "explain": documents.ExplainDocument,
    "hook-install": system_documents.HookDocument,
    "hook-status": system_documents.HookStatusDocument,
    "lab-build": system_documents.LabBuildDocument,
    "lab-compare-guests": system_documents.CompareGuestsDocument,
    "lab-conform": system_documents.ConformDocument,
    "lab-guest": system_documents.LabGuestDocument,
    "lab-root": system_documents.LabRootDocument,
    "lab-status": system_documents.LabStatusDocument,
    "plugins-check": system_documents.PluginsCheckDocument,
    "plugins-list": system_documents.PluginsDocument,
    "replay": documents.ReplayDocument,
    "status": documents.StatusDocument,
    "status-list": documents.StatusListDocument,
    "topology": documents.TopologyDocument,
}


def schema_of(name: str) -> dict[str, object]:
    """Return the JSON Schema of a document; it permits keys that later releases add."""
    schema = msgspec.json.schema(DOCUMENTS[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def text_of(name: str) -> str:
    return json.dumps(schema_of(name), indent=1) + "\n"


def check(name: str, document: object) -> None:
    """Raise an error unless ``document`` has the keys of its schema, no others, and their types."""
    _validator(name)(document)


@cache
def _validator(name: str):
    schema = schema_of(name)
    for definition in schema["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return fastjsonschema.compile({"$ref": schema["$ref"], "$defs": schema["$defs"]})


def check_output(words: Sequence[object], code: object, out: str, err: str) -> None:
    """Check what a command line with ``--format json`` printed."""
    named = [str(word) for word in words]
    if not is_json(named):
        return
    if code in REPORTED and out:
        check(_name(named, json.loads(out)), json.loads(out))
    elif err.endswith("}\n"):
        check("error", json.loads(err.splitlines()[-1]))


#: Exit codes with a document on standard output: all is well, the result of doctor.
REPORTED = {0, 1, 8, 9}


def is_json(words: Sequence[str]) -> bool:
    return "--format=json" in words or ("--format", "json") in pairwise(words)


def _name(words: Sequence[str], document: dict[str, object]) -> str:
    """Return the name of the schema of what a command prints."""
    command = "-".join(words[:2] if words[0] in {"config", "hook", "lab", "plugins"} else words[:1])
    if command == "status" and "domains" in document:
        return "status-list"
    if command == "compare" and "worlds" in document:
        return "compare-worlds"
    if command == "compare" and document["schema"] == 1:
        return "compare-1"
    return {"detach": "attach", "hook-uninstall": "hook-install"}.get(command, command)


def rewrite() -> None:
    """Write every schema, and remove those of documents that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.stem not in DOCUMENTS:
            path.unlink()
    for name in DOCUMENTS:
        (FOLDER / f"{name}.json").write_text(text_of(name))


if __name__ == "__main__":
    rewrite()
