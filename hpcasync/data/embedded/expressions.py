"""Numbers, dates, times, amounts and quantities, worded by Babel and num2words."""

import datetime
from functools import cache, lru_cache
from random import Random
from typing import Literal

from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import format_currency, format_decimal, format_percent
from babel.units import format_unit
from num2words import num2words

from hpcasync.data.embedded.grammar import Forms, Language, Words

_LOCALES = {language: Locale.parse(name) for language, name in (("en", "en_US"), ("de", "de_DE"), ("fr", "fr_FR"))}
_FIRST_DAY = datetime.date(1950, 1, 1).toordinal()
_LAST_DAY = datetime.date(2029, 12, 31).toordinal()
_CURRENCIES = ("EUR", "USD", "GBP", "CHF", "SEK", "PLN")
_CLOCK_MINUTES = (0, 5, 10, 15, 20, 30, 40, 45, 50, 55)
_DAY_PARTS = {
    "en": ("at night", "in the morning", "in the afternoon", "in the evening"),
    "de": ("nachts", "morgens", "nachmittags", "abends"),
    "fr": ("de la nuit", "du matin", "de l'après-midi", "du soir"),
}


@lru_cache(maxsize=100_000)
def _number_words(number: int, language: Language, kind: str) -> str:
    words: str = num2words(number, lang=language, to=kind)
    return words


def _each(texts: dict[Language, str]) -> Words:
    return Words(texts["en"], texts["de"], texts["fr"])


def number(value: int, *, in_words: bool) -> Words:
    """A whole number of at least 2."""
    if in_words:
        return _each({language: _number_words(value, language, "cardinal") for language in _LOCALES})
    return _each({language: format_decimal(value, locale=locale) for language, locale in _LOCALES.items()})


def count(random: Random, largest: int = 99) -> Words:
    """A number of things: in words or in digits."""
    return number(random.randint(2, largest), in_words=random.random() < 0.6)


def population(random: Random) -> Words:
    """A large number, rounded, in digits or in words."""
    digits = random.choice((3, 4, 5, 6))
    value = random.randint(2, 999) * 10 ** (digits - 1)
    return number(value, in_words=random.random() < 0.4)


def ordinal(random: Random) -> Words:
    """A place in an order; German with the ending "n"."""
    value = random.randint(2, 40)
    texts = {language: _number_words(value, language, "ordinal") for language in _LOCALES}
    return _each({**texts, "de": texts["de"] + "n"})


def year(random: Random) -> Words:
    """A year in words or in digits."""
    value = random.randint(1850, 2029)
    if random.random() < 0.5:
        return Words(*(str(value),) * 3)
    return _each({language: _number_words(value, language, "year") for language in _LOCALES})


def percentage(random: Random) -> Words:
    """A percentage in digits with a sign, or in words."""
    if random.random() < 0.6:
        value = random.randint(10, 999) / 1000
        return _each({lang: format_percent(value, "#,##0.#%", locale) for lang, locale in _LOCALES.items()})
    value = random.randint(2, 98)
    names = {"en": "percent", "de": "Prozent", "fr": "pour cent"}
    return _each({lang: f"{_number_words(value, lang, 'cardinal')} {names[lang]}" for lang in _LOCALES})


def money(random: Random) -> Words:
    """An amount: 1,234.50 euros, €1,234.50 or "two hundred euros"."""
    currency = random.choices(_CURRENCIES, (6, 3, 2, 2, 1, 1))[0]
    style = random.random()
    if style < 0.35:
        amount = random.randint(2, 99) * random.choice((1, 10, 100))
        names = {lang: _currency_name(currency, lang) for lang in _LOCALES}
        return _each({lang: f"{_number_words(amount, lang, 'cardinal')} {names[lang]}" for lang in _LOCALES})
    cents = random.choice((random.randint(200, 9_999), random.randint(10_000, 999_999)))
    kind: Literal["name", "standard"] = "name" if style < 0.75 else "standard"
    return _each(
        {lang: format_currency(cents / 100, currency, locale=loc, format_type=kind) for lang, loc in _LOCALES.items()}
    )


@cache
def _currency_name(currency: str, language: Language) -> str:
    named = format_currency(2, currency, locale=_LOCALES[language], format_type="name")
    return named.split(maxsplit=1)[1]


def quantity(random: Random, unit: str, largest: int = 900) -> Words:
    """A measured quantity: "2.5 kilograms", "forty kilograms"."""
    if random.random() < 0.4:
        value = random.randint(2, min(largest, 99))
        names = {lang: format_unit(value, unit, "long", locale=loc) for lang, loc in _LOCALES.items()}
        unit_names = {lang: name.replace("\xa0", " ").split(maxsplit=1)[1] for lang, name in names.items()}
        return _each({lang: f"{_number_words(value, lang, 'cardinal')} {unit_names[lang]}" for lang in _LOCALES})
    amount = random.randint(2, largest) if random.random() < 0.5 else random.randint(21, 10 * largest) / 10
    return _each({lang: format_unit(amount, unit, "long", locale=loc) for lang, loc in _LOCALES.items()})


def duration(random: Random) -> Words:
    """A time that something takes (German accusative)."""
    unit, largest = random.choice(
        (("minute", 59), ("hour", 48), ("day", 90), ("week", 50), ("month", 36), ("year", 30))
    )
    return quantity_of_whole(random.randint(2, largest), f"duration-{unit}", in_words=random.random() < 0.5)


def quantity_of_whole(value: int, unit: str, *, in_words: bool) -> Words:
    """A whole number of units."""
    texts = {lang: format_unit(value, unit, "long", locale=loc).replace("\xa0", " ") for lang, loc in _LOCALES.items()}
    if in_words:
        texts = {
            lang: f"{_number_words(value, lang, 'cardinal')} {text.split(maxsplit=1)[1]}"
            for lang, text in texts.items()
        }
    return _each(texts)


def date(random: Random) -> Forms:
    """A date. Forms: "on" with that preposition; "bare" to follow another (German dative, "bare-acc": accusative)."""
    day = datetime.date.fromordinal(random.randint(_FIRST_DAY, _LAST_DAY))
    style = random.choice(("long", "full", "short", "words", "words-year"))
    if style.startswith("words"):
        texts = {language: _spelled_date(day, language, with_year=style == "words-year") for language in _LOCALES}
    elif style == "short":
        texts = {"en": f"{day.month}/{day.day}/{day.year}", "de": f"{day:%d.%m.%Y}", "fr": f"{day:%d/%m/%Y}"}
    else:
        texts = {language: format_date(day, "long", locale) for language, locale in _LOCALES.items()}
    # A weekday would need another case after a preposition: only "on" has it.
    full = {language: format_date(day, "full", locale) for language, locale in _LOCALES.items()}
    on = full if style == "full" else texts
    return Forms(
        {"on": f"on {on['en']}", "bare": texts["en"]},
        {"on": f"am {on['de']}", "bare": f"dem {texts['de']}", "bare-acc": f"den {texts['de']}"},
        {"on": f"le {on['fr']}", "bare": f"le {texts['fr']}"},
    )


def _spelled_date(day: datetime.date, language: Language, *, with_year: bool) -> str:
    month = format_date(day, "MMMM", _LOCALES[language])
    if language == "en":
        text = f"the {_number_words(day.day, 'en', 'ordinal')} of {month}"
    elif language == "de":
        text = f"{_number_words(day.day, 'de', 'ordinal')}n {month}"
    else:
        text = f"{'premier' if day.day == 1 else _number_words(day.day, 'fr', 'cardinal')} {month}"
    return f"{text} {day.year}" if with_year else text


def weekday(random: Random) -> Words:
    """A day of the week, with its preposition."""
    day = datetime.date(2024, 1, random.randint(1, 7))
    names = {language: format_date(day, "EEEE", locale) for language, locale in _LOCALES.items()}
    return Words(f"on {names['en']}", f"am {names['de']}", names["fr"])


def clock(random: Random) -> Words:
    """A time of day with its preposition: by a digital clock, or as people say it."""
    if random.random() < 0.5:
        time = datetime.time(random.randint(0, 23), random.randint(0, 59))
        texts = {language: format_time(time, "short", locale=locale) for language, locale in _LOCALES.items()}
        return Words(f"at {texts['en']}", f"um {texts['de']} Uhr", f"à {texts['fr']}")
    return _spoken_clock(random.randint(1, 11), random.choice(_CLOCK_MINUTES), random.randint(0, 1) == 1)


def _spoken_clock(hour: int, minute: int, after_noon: bool) -> Words:
    coming = hour + 1
    part = (2 if hour < 6 else 3) if after_noon else (0 if hour < 5 else 1)
    texts = {
        "en": f"at {_english_clock(hour, coming, minute)}",
        "de": f"um {_german_clock(hour, coming, minute)}",
        "fr": f"à {_french_clock(hour, coming, minute)}",
    }
    return _each({language: f"{text} {_DAY_PARTS[language][part]}" for language, text in texts.items()})


def _english_clock(hour: int, coming: int, minute: int) -> str:
    name, next_name = (_number_words(value, "en", "cardinal") for value in (hour, coming))
    if minute == 0:
        return f"{name} o'clock"
    if minute == 30:
        return f"half past {name}"
    minutes = "quarter" if minute in (15, 45) else _number_words(min(minute, 60 - minute), "en", "cardinal")
    return f"{minutes} past {name}" if minute < 30 else f"{minutes} to {next_name}"


def _german_clock(hour: int, coming: int, minute: int) -> str:
    name, next_name = ("eins" if value == 1 else _number_words(value, "de", "cardinal") for value in (hour, coming))
    if minute == 0:
        return f"{'ein' if hour == 1 else name} Uhr"
    if minute == 30:
        return f"halb {next_name}"
    minutes = "Viertel" if minute in (15, 45) else _number_words(min(minute, 60 - minute), "de", "cardinal")
    return f"{minutes} nach {name}" if minute < 30 else f"{minutes} vor {next_name}"


def _french_clock(hour: int, coming: int, minute: int) -> str:
    def hours(value: int) -> str:
        return "une heure" if value == 1 else f"{_number_words(value, 'fr', 'cardinal')} heures"

    if minute == 0:
        return hours(hour)
    if minute == 30:
        return f"{hours(hour)} et demie"
    if minute in (15, 45):
        return f"{hours(hour)} et quart" if minute == 15 else f"{hours(coming)} moins le quart"
    minutes = _number_words(min(minute, 60 - minute), "fr", "cardinal")
    return f"{hours(hour)} {minutes}" if minute < 30 else f"{hours(coming)} moins {minutes}"
