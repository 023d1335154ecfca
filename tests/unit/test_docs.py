"""The documentation says what the program has."""

import re
from pathlib import Path

from hpcasync.config.reference import all_keys, markdown_table

ROOT = Path(__file__).parents[2]


def test_the_reference_lists_every_key_with_its_default() -> None:
    assert markdown_table() in (ROOT / "docs" / "training.md").read_text()


def test_every_key_is_explained() -> None:
    assert [key.name for key in all_keys() if not key.description] == []


def test_every_page_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = {part.split(")")[0] for part in readme.split("](")[1:] if part.startswith("docs/")}
    assert pages and [page for page in pages if not (ROOT / page).is_file()] == []


def test_every_file_that_a_page_names_is_there() -> None:
    named = {
        (page.name, name)
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text())
    }
    missing = [
        (page, name) for page, name in named if not any((ROOT / base / name).is_file() for base in ("", "hpcasync"))
    ]
    assert named and missing == []
