"""Slots of sentences: things that say how they are worded in a language and a grammatical form.

A form is a word that a template asks for: "nom", "acc", "dat" are German cases, with a definite article; "a-nom" and
"a-acc" have an indefinite one; "pl" is a plural without any. Other forms are told where they are defined.
"""

import re
from collections.abc import Mapping
from typing import Protocol

from hpcasync.data.embedded.lexicon import Adjective, Noun, Role

Language = str  # "en", "de" or "fr"

_DE_DEFINITE = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "acc": {"m": "den", "f": "die", "n": "das"},
    "dat": {"m": "dem", "f": "der", "n": "dem"},
}
_DE_INDEFINITE = {"nom": {"m": "ein", "f": "eine", "n": "ein"}, "acc": {"m": "einen", "f": "eine", "n": "ein"}}
_DE_ENDING_DEFINITE = {
    "nom": {"m": "e", "f": "e", "n": "e"},
    "acc": {"m": "en", "f": "e", "n": "e"},
    "dat": {"m": "en", "f": "en", "n": "en"},
}
_DE_ENDING_INDEFINITE = {"nom": {"m": "er", "f": "e", "n": "es"}, "acc": {"m": "en", "f": "e", "n": "es"}}
_FR_DEFINITE = {"m": "le", "f": "la"}
_FR_INDEFINITE = {"m": "un", "f": "une"}
_FR_VOWEL = re.compile(r"\b(le|la|de|que|je|ne) (?=[aeiouyhâàéèêîôû])(?!huit|onze|haut|yaourt)", re.IGNORECASE)
_FR_CONTRACTIONS = (("de le ", "du "), ("de les ", "des "), ("à le ", "au "), ("à les ", "aux "))


class Slot(Protocol):
    """What fills a place in a sentence."""

    def render(self, language: Language, form: str) -> str:
        """The words, in a language and a form."""


class Words:
    """The same words in any form: English, German, French."""

    def __init__(self, en: str, de: str, fr: str) -> None:
        self._texts = {"en": en, "de": de, "fr": fr}

    def render(self, language: Language, form: str) -> str:
        del form
        return self._texts[language]


class Forms:
    """Words that have several forms: each language maps forms to words."""

    def __init__(self, en: dict[str, str], de: dict[str, str], fr: dict[str, str]) -> None:
        self._texts = {"en": en, "de": de, "fr": fr}

    def render(self, language: Language, form: str) -> str:
        return self._texts[language][form]


class Thing:
    """A noun, perhaps with an adjective: definite, indefinite ("a" and a case), or plural ("pl") after a number."""

    def __init__(self, noun: Noun, adjective: Adjective | None) -> None:
        self._noun, self._adjective = noun, adjective

    def render(self, language: Language, form: str) -> str:
        """Forms: nom, acc, dat, a-nom, a-acc, pl; German "relative", French "agreement" (of a participle)."""
        if form == "relative":
            return _DE_DEFINITE["acc"][self._noun.de_gender]
        if form == "agreement":
            return "e" if self._noun.fr_gender == "f" else ""
        words = {"en": self._english, "de": self._german, "fr": self._french}[language](form)
        return " ".join(word for word in words if word)

    def _english(self, form: str) -> list[str]:
        noun = self._noun.en_plural if form == "pl" else self._noun.en
        words = [self._adjective.en if self._adjective else "", noun]
        if form == "pl":
            return words
        first = words[0] or words[1]
        return [("an" if first[0] in "aeio" else "a") if form.startswith("a-") else "the", *words]

    def _german(self, form: str) -> list[str]:
        gender = self._noun.de_gender
        stem = self._adjective.de if self._adjective else ""
        if form == "pl":
            return [stem and stem + "e", self._noun.de_plural]
        if form.startswith("a-"):
            case = form.removeprefix("a-")
            article, ending = _DE_INDEFINITE[case][gender], _DE_ENDING_INDEFINITE[case][gender]
        else:
            article, ending = _DE_DEFINITE[form][gender], _DE_ENDING_DEFINITE[form][gender]
        return [article, stem and stem + ending, self._noun.de]

    def _french(self, form: str) -> list[str]:
        plural = form == "pl"
        noun = self._noun.fr_plural if plural else self._noun.fr
        articles = _FR_INDEFINITE if form.startswith("a-") else _FR_DEFINITE
        article = "" if plural else articles[self._noun.fr_gender]
        if self._adjective is None:
            return [article, noun]
        adjective = self._adjective.fr[(self._noun.fr_gender == "f") + 2 * plural]
        return [article, adjective, noun] if self._adjective.fr_before else [article, noun, adjective]


class Person:
    """Somebody with a name, or named by a role."""

    def __init__(self, who: str | Role) -> None:
        self._who = who

    def render(self, language: Language, form: str) -> str:
        """Forms of German: nom, dat."""
        if isinstance(self._who, str):
            return self._who
        role = self._who
        if language == "en":
            return f"the {role.en}"
        if language == "fr":
            return f"{_FR_DEFINITE[role.fr_gender]} {role.fr}"
        return f"{_DE_DEFINITE[form][role.de_gender]} {role.de_dative if form == 'dat' else role.de}"


class InLanguage:
    """A slot bound to a language, so that a sentence's template can ask for a form: "{buyer:nom}"."""

    def __init__(self, slot: Slot, language: Language) -> None:
        self._slot, self._language = slot, language

    def __format__(self, form: str) -> str:
        return self._slot.render(self._language, form)


def fill(template: str, slots: Mapping[str, Slot], language: Language) -> str:
    """The sentence of a template, with plain spaces, French elisions, and a capital at its start."""
    text = template.format_map({name: InLanguage(slot, language) for name, slot in slots.items()})
    text = text.replace("\u202f", " ").replace("\xa0", " ")
    if language == "fr":
        text = elide(text)
    return text[:1].upper() + text[1:]


def elide(text: str) -> str:
    """French elisions ("le arbre": "l'arbre") and contractions ("de le café": "du café")."""
    text = _FR_VOWEL.sub(lambda match: match[1][:-1] + "'", text)
    for separate, contracted in _FR_CONTRACTIONS:
        text = re.sub(rf"\b{separate}", contracted, text)
    return text
