"""The documentation says what the program has."""

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
