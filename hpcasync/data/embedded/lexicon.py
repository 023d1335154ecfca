"""The words of the embedded corpus, with what German and French need to inflect them."""

from typing import NamedTuple


class Noun(NamedTuple):
    """A thing: English singular and plural; German gender, singular, plural; French gender, singular, plural."""

    en: str
    en_plural: str
    de_gender: str
    de: str
    de_plural: str
    fr_gender: str
    fr: str
    fr_plural: str


class Adjective(NamedTuple):
    """English; German stem; French masculine, feminine and their plurals; whether French puts it before the noun."""

    en: str
    de: str
    fr: tuple[str, str, str, str]
    fr_before: bool


class Verb(NamedTuple):
    """A transitive verb: English base, past; German and French infinitive, participle (with haben, avoir)."""

    en: str
    en_past: str
    de: str
    de_participle: str
    fr: str
    fr_participle: str


class Role(NamedTuple):
    """A person named by what they do: English; German gender, nominative, dative; French gender, noun."""

    en: str
    de_gender: str
    de: str
    de_dative: str
    fr_gender: str
    fr: str


NOUNS = tuple(
    Noun(*line.split(", "))
    for line in """\
car, cars, n, Auto, Autos, f, voiture, voitures
house, houses, n, Haus, Häuser, f, maison, maisons
book, books, n, Buch, Bücher, m, livre, livres
table, tables, m, Tisch, Tische, f, table, tables
chair, chairs, m, Stuhl, Stühle, f, chaise, chaises
lamp, lamps, f, Lampe, Lampen, f, lampe, lampes
window, windows, n, Fenster, Fenster, f, fenêtre, fenêtres
picture, pictures, n, Bild, Bilder, m, tableau, tableaux
ticket, tickets, f, Karte, Karten, m, billet, billets
bicycle, bicycles, n, Fahrrad, Fahrräder, m, vélo, vélos
suitcase, suitcases, m, Koffer, Koffer, f, valise, valises
bottle, bottles, f, Flasche, Flaschen, f, bouteille, bouteilles
coat, coats, m, Mantel, Mäntel, m, manteau, manteaux
shirt, shirts, n, Hemd, Hemden, f, chemise, chemises
shoe, shoes, m, Schuh, Schuhe, f, chaussure, chaussures
letter, letters, m, Brief, Briefe, f, lettre, lettres
parcel, parcels, n, Paket, Pakete, m, colis, colis
computer, computers, m, Rechner, Rechner, m, ordinateur, ordinateurs
machine, machines, f, Maschine, Maschinen, f, machine, machines
boat, boats, n, Boot, Boote, m, bateau, bateaux
flower, flowers, f, Blume, Blumen, f, fleur, fleurs
tree, trees, m, Baum, Bäume, m, arbre, arbres
cake, cakes, m, Kuchen, Kuchen, m, gâteau, gâteaux
clock, clocks, f, Uhr, Uhren, f, horloge, horloges
ring, rings, m, Ring, Ringe, f, bague, bagues
key, keys, m, Schlüssel, Schlüssel, f, clé, clés
umbrella, umbrellas, m, Schirm, Schirme, m, parapluie, parapluies
bag, bags, f, Tasche, Taschen, m, sac, sacs
carpet, carpets, m, Teppich, Teppiche, m, tapis, tapis
piano, pianos, n, Klavier, Klaviere, m, piano, pianos
guitar, guitars, f, Gitarre, Gitarren, f, guitare, guitares
camera, cameras, f, Kamera, Kameras, m, appareil photo, appareils photo""".splitlines()
)

ADJECTIVES = (
    Adjective("red", "rot", ("rouge", "rouge", "rouges", "rouges"), False),
    Adjective("green", "grün", ("vert", "verte", "verts", "vertes"), False),
    Adjective("blue", "blau", ("bleu", "bleue", "bleus", "bleues"), False),
    Adjective("black", "schwarz", ("noir", "noire", "noirs", "noires"), False),
    Adjective("white", "weiß", ("blanc", "blanche", "blancs", "blanches"), False),
    Adjective("small", "klein", ("petit", "petite", "petits", "petites"), True),
    Adjective("large", "groß", ("grand", "grande", "grands", "grandes"), True),
    Adjective("pretty", "schön", ("joli", "jolie", "jolis", "jolies"), True),
    Adjective("useful", "nützlich", ("utile", "utile", "utiles", "utiles"), False),
    Adjective("light", "leicht", ("léger", "légère", "légers", "légères"), False),
    Adjective("heavy", "schwer", ("lourd", "lourde", "lourds", "lourdes"), False),
    Adjective("round", "rund", ("rond", "ronde", "ronds", "rondes"), False),
    Adjective("modern", "modern", ("moderne", "moderne", "modernes", "modernes"), False),
    Adjective("strange", "seltsam", ("étrange", "étrange", "étranges", "étranges"), False),
)

VERBS = (
    Verb("buy", "bought", "kaufen", "gekauft", "acheter", "acheté"),
    Verb("sell", "sold", "verkaufen", "verkauft", "vendre", "vendu"),
    Verb("order", "ordered", "bestellen", "bestellt", "commander", "commandé"),
    Verb("find", "found", "finden", "gefunden", "trouver", "trouvé"),
    Verb("lose", "lost", "verlieren", "verloren", "perdre", "perdu"),
    Verb("deliver", "delivered", "liefern", "geliefert", "livrer", "livré"),
    Verb("borrow", "borrowed", "ausleihen", "ausgeliehen", "emprunter", "emprunté"),
    Verb("return", "returned", "zurückgeben", "zurückgegeben", "rendre", "rendu"),
    Verb("repair", "repaired", "reparieren", "repariert", "réparer", "réparé"),
    Verb("forget", "forgot", "vergessen", "vergessen", "oublier", "oublié"),
    Verb("photograph", "photographed", "fotografieren", "fotografiert", "photographier", "photographié"),
    Verb("collect", "collected", "abholen", "abgeholt", "récupérer", "récupéré"),
    Verb("measure", "measured", "messen", "gemessen", "mesurer", "mesuré"),
    Verb("hide", "hid", "verstecken", "versteckt", "cacher", "caché"),
)

ROLES = tuple(
    Role(*line.split(", "))
    for line in """\
teacher, m, Lehrer, Lehrer, m, professeur
nurse, f, Krankenschwester, Krankenschwester, f, infirmière
neighbor, m, Nachbar, Nachbarn, m, voisin
mayor, m, Bürgermeister, Bürgermeister, m, maire
doctor, f, Ärztin, Ärztin, f, médecin
baker, m, Bäcker, Bäcker, m, boulanger
student, m, Student, Studenten, m, étudiant
lawyer, f, Anwältin, Anwältin, f, avocate
painter, m, Maler, Maler, m, peintre
engineer, m, Ingenieur, Ingenieur, m, ingénieur
librarian, f, Bibliothekarin, Bibliothekarin, f, bibliothécaire
waiter, m, Kellner, Kellner, m, serveur
company, f, Firma, Firma, f, société
grandmother, f, Großmutter, Großmutter, f, grand-mère
boy, m, Junge, Jungen, m, garçon
director, f, Direktorin, Direktorin, f, directrice""".splitlines()
)

NAMES = (
    "Anna", "Peter", "Maria", "Thomas", "Julia", "Lukas", "Clara", "Felix", "Sophie", "Paul", "Emma", "Max", "Laura",
    "David", "Nina", "Simon", "Eva", "Martin", "Lisa", "Jonas", "Helena", "Oscar", "Vera", "Hugo",
)  # fmt: skip

# English, German, French.
CITIES = tuple(
    tuple(line.split(", "))
    for line in """\
Munich, München, Munich
Vienna, Wien, Vienne
Cologne, Köln, Cologne
Geneva, Genf, Genève
Brussels, Brüssel, Bruxelles
Prague, Prag, Prague
Warsaw, Warschau, Varsovie
Milan, Mailand, Milan
Venice, Venedig, Venise
Florence, Florenz, Florence
Naples, Neapel, Naples
Lisbon, Lissabon, Lisbonne
London, London, Londres
Copenhagen, Kopenhagen, Copenhague
Moscow, Moskau, Moscou
Athens, Athen, Athènes
Nuremberg, Nürnberg, Nuremberg
Strasbourg, Straßburg, Strasbourg
Basel, Basel, Bâle
Zurich, Zürich, Zurich
Berlin, Berlin, Berlin
Hamburg, Hamburg, Hambourg
Seville, Sevilla, Séville
Antwerp, Antwerpen, Anvers
Krakow, Krakau, Cracovie
Genoa, Genua, Gênes
Turin, Turin, Turin
Dresden, Dresden, Dresde""".splitlines()
)

# English, German, French; with the units they are measured in.
SUBSTANCES = (
    ("flour", "Mehl", "farine", "mass-kilogram"),
    ("sugar", "Zucker", "sucre", "mass-kilogram"),
    ("coffee", "Kaffee", "café", "mass-gram"),
    ("rice", "Reis", "riz", "mass-kilogram"),
    ("cheese", "Käse", "fromage", "mass-gram"),
    ("butter", "Butter", "beurre", "mass-gram"),
    ("milk", "Milch", "lait", "volume-liter"),
    ("water", "Wasser", "eau", "volume-liter"),
    ("oil", "Öl", "huile", "volume-liter"),
    ("paint", "Farbe", "peinture", "volume-liter"),
    ("sand", "Sand", "sable", "mass-tonne"),
    ("coal", "Kohle", "charbon", "mass-tonne"),
    ("wood", "Holz", "bois", "volume-cubic-meter"),
    ("gravel", "Kies", "gravier", "volume-cubic-meter"),
    ("cable", "Kabel", "câble", "length-meter"),
    ("fabric", "Stoff", "tissu", "length-meter"),
)

GROUPS = (
    ("inhabitants", "Einwohner", "habitants"),
    ("pupils", "Schüler", "élèves"),
    ("visitors", "Besucher", "visiteurs"),
    ("employees", "Angestellten", "employés"),
    ("customers", "Kunden", "clients"),
    ("voters", "Wähler", "électeurs"),
    ("passengers", "Fahrgäste", "passagers"),
    ("farmers", "Bauern", "agriculteurs"),
)

# What a group does: English plural past; German participle phrase (with haben); French past (with avoir).
OPINIONS = (
    ("rejected the plan", "den Plan abgelehnt", "rejeté le projet"),
    ("supported the plan", "den Plan unterstützt", "soutenu le projet"),
    ("read the report", "den Bericht gelesen", "lu le rapport"),
    ("signed the contract", "den Vertrag unterschrieben", "signé le contrat"),
    ("praised the food", "das Essen gelobt", "apprécié le repas"),
    ("answered the question", "die Frage beantwortet", "répondu à la question"),
    ("missed the train", "den Zug verpasst", "manqué le train"),
    ("saw the exhibition", "die Ausstellung gesehen", "vu l'exposition"),
)

EVENTS = (
    ("meeting", "f", "Besprechung", "f", "réunion"),
    ("concert", "n", "Konzert", "m", "concert"),
    ("wedding", "f", "Hochzeit", "m", "mariage"),
    ("exam", "f", "Prüfung", "m", "examen"),
    ("match", "n", "Spiel", "m", "match"),
    ("conference", "f", "Tagung", "f", "conférence"),
    ("exhibition", "f", "Ausstellung", "f", "exposition"),
    ("course", "m", "Kurs", "m", "cours"),
    ("auction", "f", "Versteigerung", "f", "vente"),
    ("party", "n", "Fest", "f", "fête"),
)

PLACES = (
    ("in the station", "im Bahnhof", "à la gare"),
    ("at the market", "auf dem Markt", "au marché"),
    ("in the office", "im Büro", "au bureau"),
    ("in the garden", "im Garten", "dans le jardin"),
    ("in the cellar", "im Keller", "dans la cave"),
    ("behind the church", "hinter der Kirche", "derrière l'église"),
    ("under the bridge", "unter der Brücke", "sous le pont"),
    ("near the river", "in der Nähe des Flusses", "près de la rivière"),
    ("in the kitchen", "in der Küche", "dans la cuisine"),
    ("at the airport", "am Flughafen", "à l'aéroport"),
    ("in front of the museum", "vor dem Museum", "devant le musée"),
    ("on the roof", "auf dem Dach", "sur le toit"),
)
