"""Words that this project does not use: patterns and replacements.

``python tests/words.py [FOLDER]`` prints every occurrence in the product, the documentation and
the tests, and the counts by word and by room.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATHS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "plugins", "scripts", "tests",
          "vmm_msi", "xml-templates")  # fmt: skip
SUFFIXES = {"", ".md", ".py", ".service", ".sh", ".toml", ".xml"}
#: The files that define and test the words.
EXEMPT = {"tests/words.py", "tests/docs/test_words.py"}


class Word(NamedTuple):
    """A pattern that must not occur.

    :param alternatives: the pattern without its boundaries.
    :param instead: what to write.
    """

    alternatives: str
    pattern: re.Pattern[str]
    instead: str


def _word(pattern: str, instead: str) -> Word:
    return Word(pattern, _pattern(pattern), instead)


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(alternatives)})(?![\w-])", re.IGNORECASE)


WORDS = (
    # A key of the JSON of explain is "mends"; a type names it without quotes.
    _word(r"(?<![\"`])(?:mend|mends|mended|mending)(?![\"`]|: list)", "fix, remedy"),
    _word("told|foretold|tells? of|says? of|said of", "report, show, describe"),
    _word("tells? (?:whether|which|what|how|where|why|who)", "return whether, show which"),
    _word("meant", "selected, intended"),
    _word("beforehand", "in advance"),
    _word("giv(?:e|es|en|ing) (?:it |them |\\w+ )?away", "assign"),
    _word("tak(?:e|es|en|ing) (?:it |them |that |this )?out", "remove"),
    _word("(?<!there )(?:is|are|was|were) no (?!longer|more|less|better|worse)\\w+", "is not a"),
    _word("of ours", "managed by vmm-msi"),
    _word("(?:hold|holds|held) (?:it |them |one |the \\w+ |\\w+ )?against", "compare with"),
    _word("takes root|wants", "requires"),
    _word("would (?:work|do)(?! (?:so|it|that))", "works, use"),
    _word("made again|gone on with|anew", "retried, resumed, again"),
    # A model of hardware has a name: "the model HiSilicon Hi161x".
    _word(
        r"the model(?! HiSilicon)|models? of (?:the )?kernel|modelled|modelling",
        "the simulator, simulated",
    ),
    _word("carr(?:y|ies|ied|ying) (?:it |them |that |this )?out", "apply, run"),
    _word("takes? turns|tak(?:e|en|ing) turns", "host lock"),
    _word("troupe|surroundings|gatherers?", "facts"),
    # The user of that name in a passwd file is "nobody:x:…".
    _word("nobody(?! cared)(?!:x:)|whoever|somebody|anybody", "name the reader or the program"),
    _word("there is none|where there is none", "name what is missing"),
)

#: Any of them: most files have none, and are searched once.
ANY = _pattern(*(word.alternatives for word in WORDS))


def files(root: Path = ROOT) -> list[Path]:
    """Return the files that must not have the words."""
    paths = []
    for name in PATHS:
        base = root / name
        paths += [base] if base.is_file() else sorted(base.rglob("*"))
    return [
        path
        for path in paths
        if path.is_file()
        and path.suffix in SUFFIXES
        and "__pycache__" not in path.parts
        and path.relative_to(root).as_posix() not in EXEMPT
    ]


def occurrences(path: Path) -> list[tuple[int, str, Word]]:
    """Return line number, text and word of each occurrence in a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    if not ANY.search(text):
        return []
    # No pattern goes beyond the end of a line.
    matches = [(match, word) for word in WORDS for match in word.pattern.finditer(text)]
    matches.sort(key=lambda occurrence: occurrence[0].start())
    return [(text.count("\n", 0, match.start()) + 1, match[0], word) for match, word in matches]


def main() -> None:
    """Print the occurrences, and the counts by word and by room."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    by_word: Counter[str] = Counter()
    by_room: Counter[str] = Counter()
    for path in files(root):
        for line, text, word in occurrences(path):
            print(f"{path.relative_to(root)}:{line}: {text}: {word.instead}")
            by_word[word.instead] += 1
            by_room["/".join(path.relative_to(root).parts[:2])] += 1
    for counts in (by_word, by_room):
        for name, count in counts.most_common():
            print(f"{count:6} {name}")
        print(f"{counts.total():6} in all\n")


if __name__ == "__main__":
    main()
