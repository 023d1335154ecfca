"""The embedded corpus: its language, its splits, and the way from fetch to a prepared corpus."""

import datetime
import re
import shlex
from pathlib import Path
from random import Random

import pytest
import sacrebleu
from click.testing import CliRunner

from hpcasync.cli.data import data
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.embedded.expressions import _french_clock, _german_clock, _spelled_date
from hpcasync.data.embedded.generate import held_out_size, write_corpus
from hpcasync.data.embedded.grammar import Person, Thing, elide, fill
from hpcasync.data.embedded.lexicon import ADJECTIVES, NOUNS, ROLES
from hpcasync.data.embedded.sentences import TEMPLATES, sentence
from hpcasync.data.text import read_sentences
from hpcasync.errors import UserError


def thing(noun: str, adjective: str | None) -> Thing:
    return Thing(
        next(n for n in NOUNS if n.en == noun), next((a for a in ADJECTIVES if a.en == adjective), None)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "en", "de", "fr"),
    [
        ("nom", "the red table", "der rote Tisch", "la table rouge"),
        ("acc", "the red table", "den roten Tisch", "la table rouge"),
        ("dat", "the red table", "dem roten Tisch", "la table rouge"),
        ("a-nom", "a red table", "ein roter Tisch", "une table rouge"),
        ("a-acc", "a red table", "einen roten Tisch", "une table rouge"),
        ("pl", "red tables", "rote Tische", "tables rouges"),
    ],
)
def test_inflection(form: str, en: str, de: str, fr: str) -> None:
    slots = {"x": thing("table", "red")}
    texts = [fill(f"{{x:{form}}}", slots, language) for language in ("en", "de", "fr")]
    assert [text.lower() for text in texts] == [en, de.lower(), fr]


def test_french_agreement_and_order() -> None:
    assert fill("{x:pl}", {"x": thing("car", "small")}, "fr") == "Petites voitures"
    assert fill("{x:nom}", {"x": thing("tree", "green")}, "fr") == "L'arbre vert"
    assert thing("clock", None).render("fr", "agreement") == "e"


def test_persons_are_inflected() -> None:
    boy = Person(next(role for role in ROLES if role.en == "boy"))
    assert [boy.render("de", form) for form in ("nom", "dat")] == ["der Junge", "dem Jungen"]
    assert (boy.render("en", "nom"), boy.render("fr", "nom")) == ("the boy", "le garçon")


@pytest.mark.parametrize(
    ("text", "elided"),
    [
        ("est-ce que Anna a le ordinateur", "est-ce qu'Anna a l'ordinateur"),
        ("avant le huit mai ou le onze mai", "avant le huit mai ou le onze mai"),
        ("près de le arbre, de le café, de les murs", "près de l'arbre, du café, des murs"),
        ("il va à le marché et à les halles", "il va au marché et aux halles"),
        ("deux kilos de huile", "deux kilos d'huile"),
    ],
)
def test_french_elision(text: str, elided: str) -> None:
    assert elide(text) == elided


def test_clock_as_people_say_it() -> None:
    assert [_german_clock(3, 4, minute) for minute in (0, 15, 30, 45, 50)] == [
        "drei Uhr", "Viertel nach drei", "halb vier", "Viertel vor vier", "zehn vor vier"]  # fmt: skip
    assert [_french_clock(1, 2, minute) for minute in (0, 15, 30, 40, 45)] == [
        "une heure", "une heure et quart", "une heure et demie", "deux heures moins vingt",
        "deux heures moins le quart"]  # fmt: skip


def test_spelled_dates() -> None:
    day = datetime.date(2021, 3, 1)
    dates = [_spelled_date(day, language, with_year=True) for language in ("en", "de", "fr")]
    assert dates == ["the first of March 2021", "ersten März 2021", "premier mars 2021"]


def test_every_template_fills_in_every_language() -> None:
    random = Random(5)
    for template in TEMPLATES:
        for _ in range(20):
            slots = {name: draw(random) for name, draw in template.slots.items()}
            for language in ("en", "de", "fr"):
                text = fill(template.texts[language], slots, language)
                assert re.fullmatch(r"[^\s{}\xa0\u202f]+( [^\s{}\xa0\u202f]+)+", text), text
                assert text[0] == text[0].upper()
                assert text[-1] in ".?"


def test_sentences_seldom_repeat_and_cannot_be_copied() -> None:
    random = Random(1)
    drawn = [sentence(random) for _ in range(3000)]
    assert len({texts["en"] for texts in drawn}) > 2900
    copied = sacrebleu.corpus_bleu([texts["en"] for texts in drawn], [[texts["de"] for texts in drawn]])
    assert copied.score < 2


def test_splits_are_full_and_apart(tmp_path: Path) -> None:
    write_corpus(tmp_path, "de", 700, seed=3)
    splits = {name: read_sentences(tmp_path / f"{name}.en") for name in ("train", "valid", "test")}
    assert {name: len(sources) for name, sources in splits.items()} == {"train": 700, "valid": 70, "test": 70}
    assert len(set(splits["valid"])) == len(set(splits["test"])) == 70
    sets = [set(sources) for sources in splits.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert len(read_sentences(tmp_path / "train.de")) == 700


def test_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, "fr", 50, seed)
    texts = [(tmp_path / name / "train.fr").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_held_out_sizes() -> None:
    assert [held_out_size(pairs) for pairs in (1, 1000, 20_000, 10**7)] == [20, 100, 1000, 1000]


def test_the_printed_command_prepares_the_corpus(tmp_path: Path) -> None:
    fetched = CliRunner().invoke(data, ["fetch", "embedded", str(tmp_path / "a dir"), "--pairs", "1500"])
    assert fetched.exit_code == 0, fetched.output
    words = shlex.split(fetched.output.strip().splitlines()[-1])
    # Where hpcasync is not on PATH, by the Python that it is installed in.
    arguments = words[words.index("data") + 1 :]
    assert "hpcasync" in words[: words.index("data")] and arguments[0] == "prepare"
    prepared = CliRunner().invoke(data, [*arguments, "--processes", "1"])
    assert prepared.exit_code == 0, prepared.exception
    corpus = PreparedCorpus.open(Path(words[words.index("--out") + 1]))
    assert (corpus.manifest.source_language, corpus.manifest.target_language) == ("en", "de")
    assert len(corpus.train) == 1500
    assert len(corpus.raw("test")[0]) == 150


def test_fetching_again_changes_nothing_else(tmp_path: Path) -> None:
    arguments = ["fetch", "embedded", str(tmp_path), "--pairs", "30"]
    assert CliRunner().invoke(data, arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert CliRunner().invoke(data, arguments).exit_code == 0
    other = CliRunner().invoke(data, [*arguments, "--seed", "2"])
    assert isinstance(other.exception, UserError)
    assert "is there with other content" in str(other.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_languages_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["fetch", "embedded", str(tmp_path), "--target", "ja"])
    assert "--target ja: the embedded corpus has de and fr" in str(result.exception)
