"""The sentences of the embedded corpus: templates in three languages, and what fills them.

German puts time before place, participles and infinitives last, and the verb last in subordinate clauses; French puts
most adjectives after the noun: a translation has to be reordered, inflected and reworded, not copied.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from hpcasync.data.embedded import expressions, lexicon
from hpcasync.data.embedded.grammar import Forms, Language, Person, Slot, Thing, Words, fill

Draw = Callable[[Random], Slot]


class Template(NamedTuple):
    """A sentence with slots: how each slot is drawn, and its wording in each language."""

    slots: dict[str, Draw]
    texts: dict[Language, str]
    weight: int = 2


def _thing(random: Random) -> Thing:
    adjective = random.choice(lexicon.ADJECTIVES) if random.random() < 0.6 else None
    return Thing(random.choice(lexicon.NOUNS), adjective)


def _person(random: Random) -> Person:
    return Person(random.choice(lexicon.NAMES) if random.random() < 0.4 else random.choice(lexicon.ROLES))


def _verb(random: Random) -> Forms:
    verb = random.choice(lexicon.VERBS)
    return Forms(
        {"base": verb.en, "past": verb.en_past},
        {"infinitive": verb.de, "participle": verb.de_participle},
        {"infinitive": verb.fr, "participle": verb.fr_participle},
    )


def _city(random: Random) -> Words:
    return Words(*random.choice(lexicon.CITIES))


def _place(random: Random) -> Words:
    return Words(*random.choice(lexicon.PLACES))


def _group(random: Random) -> Words:
    return Words(*random.choice(lexicon.GROUPS))


def _opinion(random: Random) -> Words:
    return Words(*random.choice(lexicon.OPINIONS))


def _event(random: Random) -> Forms:
    en, de_gender, de, fr_gender, fr = random.choice(lexicon.EVENTS)
    article = {"m": "der", "f": "die", "n": "das"}[de_gender]
    return Forms(
        {"": f"the {en}"},
        {"nom": f"{article} {de}", "relative": f"{article} {de}, {article}"},
        {"": f"{'le' if fr_gender == 'm' else 'la'} {fr}", "participle": "e" if fr_gender == "f" else ""},
    )


def _supply(random: Random) -> Forms:
    en, de, fr, unit = random.choice(lexicon.SUBSTANCES)
    amount = expressions.quantity(random, unit)
    amounts = {language: amount.render(language, "") for language in ("en", "de", "fr")}
    return Forms(
        {"": f"{amounts['en']} of {en}"}, {"": f"{amounts['de']} {de}"}, {"": f"{amounts['fr']} de {fr}"}
    )  # fmt: skip


def _quantity(unit: str, largest: int) -> Draw:
    return lambda random: expressions.quantity(random, unit, largest)


def _temperatures(random: Random) -> Forms:
    low, high = sorted(random.sample(range(2, 41), 2))
    in_words = random.random() < 0.5
    ends = {
        name: expressions.quantity_of_whole(value, "temperature-celsius", in_words=in_words)
        for name, value in (("low", low), ("high", high))
    }
    en, de, fr = ({name: end.render(language, "") for name, end in ends.items()} for language in ("en", "de", "fr"))
    return Forms(en, de, fr)


def _route(random: Random) -> Forms:
    start, end = random.sample(lexicon.CITIES, 2)
    en, de, fr = ({"from": start[language], "to": end[language]} for language in range(3))
    return Forms(en, de, fr)


TEMPLATES = (
    Template(
        {"who": _person, "n": expressions.count, "what": _thing, "price": expressions.money, "when": expressions.date,
         "did": _verb},
        {"en": "{when:on}, {who} {did:past} {n} {what:pl} for {price}.",
         "de": "{when:on} hat {who:nom} {n} {what:pl} für {price} {did:participle}.",
         "fr": "{when:on}, {who} a {did:participle} {n} {what:pl} pour {price}."},
        weight=3,
    ),
    Template(
        {"who": _person, "what": _thing, "did": _verb, "where": _place, "when": expressions.weekday,
         "at": expressions.clock},
        {"en": "{who} {did:past} {what:a-acc} {where} {when} {at}.",
         "de": "{who:nom} hat {when} {at} {where} {what:a-acc} {did:participle}.",
         "fr": "{when} {at}, {who} a {did:participle} {what:a-acc} {where}."},
        weight=3,
    ),
    Template(
        {"who": _person, "what": _thing, "do": _verb, "when": expressions.date, "with": _person},
        {"en": "{who} wants to {do:base} {what:acc} with {with} before {when:bare}.",
         "de": "{who:nom} will {what:acc} vor {when:bare} mit {with:dat} {do:infinitive}.",
         "fr": "{who} veut {do:infinitive} {what:acc} avec {with} avant {when:bare}."},
        weight=3,
    ),
    Template(
        {"who": _person, "what": _thing, "did": _verb, "other": _person, "second": _verb, "n": expressions.count,
         "more": _thing},
        {"en": "{who} {did:past} {what:acc} because {other} {second:past} {n} {more:pl}.",
         "de": "{who:nom} hat {what:acc} {did:participle}, weil {other:nom} {n} {more:pl} {second:participle} hat.",
         "fr": "{who} a {did:participle} {what:acc} parce que {other} a {second:participle} {n} {more:pl}."},
        weight=3,
    ),
    Template(
        {"who": _person, "what": _thing, "did": _verb, "where": _place, "in": expressions.year},
        {"en": "did {who} {did:base} {what:acc} {where} in {in}?",
         "de": "hat {who:nom} {what:acc} im Jahr {in} {where} {did:participle}?",
         "fr": "est-ce que {who} a {did:participle} {what:acc} {where} en {in} ?"},
    ),
    Template(
        {"what": _thing, "price": expressions.money, "when": expressions.date},
        {"en": "{what:nom} has cost {price} since {when:bare}.",
         "de": "{what:nom} kostet seit {when:bare} {price}.",
         "fr": "depuis {when:bare}, {what:nom} coûte {price}."},
    ),
    Template(
        {"stuff": _supply, "when": expressions.date, "who": _person},
        {"en": "{who} needs {stuff} before {when:bare}.",
         "de": "{who:nom} braucht vor {when:bare} {stuff:}.",
         "fr": "{who} a besoin de {stuff} avant {when:bare}."},
    ),
    Template(
        {"stuff": _supply, "price": expressions.money, "city": _city},
        {"en": "they pay {price} for {stuff} in {city}.",
         "de": "in {city} bezahlt man {price} für {stuff:}.",
         "fr": "à {city}, on paie {price} pour {stuff}."},
    ),
    Template(
        {"event": _event, "when": expressions.date, "then": expressions.date},
        {"en": "{event} that was planned for {when:bare} will only take place {then:on}.",
         "de": "{event:relative} für {when:bare-acc} geplant war, findet erst {then:on} statt.",
         "fr": "{event} prévu{event:participle} pour {when:bare} n'aura lieu que {then:on}."},
    ),
    Template(
        {"event": _event, "at": expressions.clock, "long": expressions.duration},
        {"en": "{event} starts {at} and lasts {long}.",
         "de": "{event:nom} fängt {at} an und dauert {long}.",
         "fr": "{event} commence {at} et dure {long}."},
    ),
    Template(
        {"city": _city, "at": expressions.clock, "n": expressions.count, "when": expressions.weekday},
        {"en": "the train to {city} leaves {when} {at} from platform {n}.",
         "de": "der Zug nach {city} fährt {when} {at} von Gleis {n} ab.",
         "fr": "{when}, le train pour {city} part {at} du quai {n}."},
    ),
    Template(
        {"rise": _temperatures, "city": _city, "when": expressions.date},
        {"en": "in {city}, the temperature rose from {rise:low} to {rise:high} {when:on}.",
         "de": "{when:on} ist die Temperatur in {city} von {rise:low} auf {rise:high} gestiegen.",
         "fr": "{when:on}, la température à {city} est passée de {rise:low} à {rise:high}."},
    ),
    Template(
        {"in": expressions.year, "city": _city, "n": expressions.population},
        {"en": "{city} had {n} inhabitants in {in}.",
         "de": "im Jahr {in} hatte {city} {n} Einwohner.",
         "fr": "en {in}, {city} comptait {n} habitants."},
    ),
    Template(
        {"share": expressions.percentage, "group": _group, "opinion": _opinion, "city": _city},
        {"en": "{share} of the {group} in {city} {opinion}.",
         "de": "in {city} haben {share} der {group} {opinion}.",
         "fr": "à {city}, {share} des {group} ont {opinion}."},
    ),
    Template(
        {"who": _person, "floor": expressions.ordinal, "city": _city, "since": expressions.year},
        {"en": "{who} has lived on the {floor} floor in {city} since {since}.",
         "de": "{who:nom} wohnt seit {since} in {city} im {floor} Stock.",
         "fr": "{who} habite depuis {since} au {floor} étage à {city}."},
    ),
    Template(
        {"who": _person, "age": expressions.count, "weight": _quantity("mass-kilogram", 120)},
        {"en": "{who} is {age} years old and weighs {weight}.",
         "de": "{who:nom} ist {age} Jahre alt und wiegt {weight}.",
         "fr": "{who} a {age} ans et pèse {weight}."},
    ),
    Template(
        {"far": _quantity("length-kilometer", 900), "route": _route, "long": expressions.duration},
        {"en": "it is {far} from {route:from} to {route:to}, and the journey takes {long}.",
         "de": "von {route:from} nach {route:to} sind es {far}, und die Reise dauert {long}.",
         "fr": "il y a {far} de {route:from} à {route:to}, et le voyage dure {long}."},
    ),
    Template(
        {"what": _thing, "weight": _quantity("mass-kilogram", 300), "where": _place, "who": _person},
        {"en": "{what:nom} that {who} left {where} weighs {weight}.",
         "de": "{what:nom}, {what:relative} {who:nom} {where} gelassen hat, wiegt {weight}.",
         "fr": "{what:nom} que {who} a laissé{what:agreement} {where} pèse {weight}."},
    ),
)  # fmt: skip


def sentence(random: Random) -> dict[Language, str]:
    """Draw one sentence, in English, German and French."""
    template = random.choices(TEMPLATES, _WEIGHTS)[0]
    slots = {name: draw(random) for name, draw in template.slots.items()}
    return {language: fill(text, slots, language) for language, text in template.texts.items()}


_WEIGHTS = [template.weight for template in TEMPLATES]
