"""The published schemas; the fixture ``vmm_msi`` and the tests of the lab check documents."""

from __future__ import annotations

import argparse
import re

import doc_blocks
import fastjsonschema
import json_schemas
import pytest

from vmm_msi.cli import COMMANDS, build_parser

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


def commands(parser, words=()):
    """Yield the words and the parser of each command that runs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from commands(command, (*words, name))
            return
    yield " ".join(words), parser


def test_commands_without_json_are_explained():
    """docs/cli.md explains for each command why a program does not need a document."""
    without = {
        name
        for name, parser in commands(build_parser(COMMANDS))
        if "--format" not in parser._option_string_actions
    }
    text = " ".join((doc_blocks.DOCS / "cli.md").read_text().split())
    sentence = text.partition("Commands without `--format`")[2].partition("Their exit code")[0]
    named = set(re.findall(r"`([a-z ]+)`", sentence))
    assert {name for name in named if "--" not in name} == without
