"""Each finding has a page, each page a finding, and all pages have the same structure."""

import re

import doc_blocks
import pytest

from vmm_msi.doctor import pages, rules
from vmm_msi.errors import UsageError

IDS = doc_blocks.finding_ids()
SECTIONS = ["What is checked", "What happens", "What to do", "Sources"]


def test_every_finding_has_a_page_and_every_page_has_a_finding():
    assert set(pages.ids()) == set(IDS)


@pytest.mark.parametrize("name", pages.ids())
def test_structure_of_a_page(name):
    text = pages.page(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    head, *sections = re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]
    title = re.fullmatch(rf"{name}: (\S.*[^.\s])\n+", head)
    assert title, head
    assert pages.title(name) == title[1]
    assert [section.partition("\n")[0] for section in sections] == SECTIONS
    for section in sections:
        assert section.partition("\n")[2].strip(), section
    assert re.search(r"^## Sources\n.*\S", text, re.DOTALL | re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 112


def test_an_unknown_id_suggests_similar_ids():
    with pytest.raises(UsageError) as caught:
        pages.page("no-it")
    assert "'no-it': unknown id; similar: no-its" in str(caught.value)


def test_an_id_without_similar_ids_points_to_the_doctor():
    with pytest.raises(UsageError, match="vmm-msi doctor prints the ids"):
        pages.page("xyzzy")


def test_every_rule_is_in_the_list():
    """Every public function of a module of rules is a rule."""
    every = (*rules.HOST_RULES, *rules.ALONE_RULES, *rules.guest_rules())
    listed = {f"{rule.__module__}.{rule.__name__}" for rule in every}
    assert len(listed) == len(every)
    assert listed == set(doc_blocks.rule_names())
