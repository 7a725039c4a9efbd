"""The product, the documentation and the tests avoid the words that ``words.py`` lists."""

from __future__ import annotations

import pytest
import words


def test_files_have_no_avoided_words():
    occurrences = [
        f"{path.relative_to(words.ROOT)}:{line}: {text}; instead: {word.instead}"
        for path in words.files()
        for line, text, word in words.occurrences(path)
    ]
    assert occurrences == []


@pytest.mark.parametrize(
    "line",
    [
        "the kernel is told of it",
        "Tell whether it runs.",
        "where there is none",
        "it is no device",
        "a domain of ours",
    ],
)
def test_avoided_words_are_noticed(tmp_path, line):
    path = tmp_path / "page.md"
    path.write_text(f"first line\n{line}\n")
    assert [number for number, _text, _word in words.occurrences(path)] == [2]


@pytest.mark.parametrize(
    "line",
    ['"mends": [', "it is no longer there", "an SMMUv3 of the model HiSilicon Hi161x"],
)
def test_legitimate_uses_are_allowed(tmp_path, line):
    path = tmp_path / "page.md"
    path.write_text(line)
    assert words.occurrences(path) == []
