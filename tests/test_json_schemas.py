"""The published schemas; the fixture ``vmm_msi`` and the tests of the lab check documents."""

from __future__ import annotations

import doc_blocks
import fastjsonschema
import json_schemas
import pytest

ERROR = {"schema": 1, "command": "attach", "code": "refused", "exit_code": 5, "message": "m"}


def test_published_schemas_are_up_to_date():
    """Generate them with tests/json_schemas.py."""
    published = {path.stem: path.read_text() for path in json_schemas.FOLDER.glob("*")}
    assert published == {name: json_schemas.text_of(name) for name in json_schemas.DOCUMENTS}


def test_every_schema_is_listed():
    page = (doc_blocks.DOCS / "cli.md").read_text()
    links = [f"[{name}](schemas/{name}.json)" for name in json_schemas.DOCUMENTS]
    assert [link for link in links if link not in page] == []


@pytest.mark.parametrize(
    "change",
    [{"exit_code": "5"}, {"schema": 2}, {"more": 1}, {"command": None}, {"findings": "no-its"}],
)
def test_other_documents_are_refused(change):
    json_schemas.check("error", ERROR)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        json_schemas.check("error", ERROR | change)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        json_schemas.check("error", {"schema": 1})
