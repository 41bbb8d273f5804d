"""Writes mixed.txt, the built-in calibration text: python make.py CORPUS_FOLDER

Three kinds of documents, spread evenly so that any prefix of the file is as mixed as the whole:
excerpts of the public-domain works of ../corpus.py (never from the held-out chapters), the
documents of written.txt (written for this project), and tables, records, sums and logs generated
here from a fixed seed. CORPUS_FOLDER is where ../corpus.py keeps the packages it fetches.
"""

import json
import pathlib
import random
import re
import sys

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import corpus  # noqa: E402

# Characters taken from each work, in pieces of about PIECE characters.
SHARES = {"emma": 22_000, "mansfield-park": 22_000, "northanger-abbey": 18_000,
          "persuasion": 18_000, "pride-and-prejudice": 30_000, "sense-and-sensibility": 20_000,
          "moby-dick": 62_000, "devils-dictionary": 26_000, "opticks": 34_000,
          "britannica-shakespeare": 14_000, "factbook": 44_000}
PIECE = 2_000
DATED = re.compile(r"negro|nigger|squaw", re.IGNORECASE)  # passages with such words are left out

NAMES = ["Ada Novak", "Ben Carter", "Chiara Rossi", "David Okafor", "Elif Demir", "Femke Visser",
         "Grace Kim", "Hugo Martin", "Ines Silva", "Jonas Berg", "Keiko Tanaka", "Liam Byrne",
         "Mona Haddad", "Nils Holm", "Olga Petrova", "Priya Nair", "Quentin Roy", "Rosa Diaz"]
CITIES = ["Lisbon", "Oslo", "Kyoto", "Quito", "Nairobi", "Toronto", "Leipzig", "Porto", "Lima",
          "Cork", "Turin", "Gdansk", "Perth", "Hanoi", "Lyon", "Denver"]
GOODS = ["notebook", "desk lamp", "kettle", "bicycle bell", "wool scarf", "garden hose", "teapot",
         "screwdriver", "backpack", "alarm clock", "picture frame", "rain jacket", "umbrella"]
COLOURS = ["red", "green", "blue", "grey", "white", "black", "yellow"]


def written():
    """The documents of written.txt; a line "%%%% kind" starts each."""
    text = (HERE / "written.txt").read_text("utf-8")
    return [d.split("\n", 1)[1].strip("\n") for d in text.split("%%%% ")[1:]]


def excerpts(folder):
    """Pieces of the training chapters: whole paragraphs, evenly spaced through each work."""
    chapters = {}
    for work, text in corpus.split(folder)[0]:
        chapters.setdefault(work, []).append(text)
    documents = []
    for work, share in SHARES.items():
        pieces = corpus.packed([p for c in chapters[work] for p in c.split("\n\n")], PIECE)
        pieces = [p for p in pieces if not DATED.search(p)]
        count = max(1, round(share / (sum(map(len, pieces)) / len(pieces))))
        chosen = [pieces[(2 * i + 1) * len(pieces) // (2 * count)] for i in range(count)]
        documents.append(chosen)
    return spread(documents)


def generated(rng):
    """Tables, records, sums, sequences, conversions and logs; the facts in them are invented,
    the arithmetic is right."""
    makers = [sums, products, fractions, sequences, units, equations, json_record, json_list, csv_table,
              markdown_table, fixed_table, log_lines, timetable, key_values, xml_record, dates,
              statistics, chat_json, function_calls, traceback, sentences_about_goods]
    return spread([[make(rng) for _ in range(4)] for make in makers])


def sums(rng):
    lines = []
    for _ in range(12):
        a, b = rng.randint(2, 10 ** rng.randint(1, 5)), rng.randint(2, 10 ** rng.randint(1, 4))
        lines.append(rng.choice([f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}"]))
    return "\n".join(lines)


def products(rng):
    lines = []
    for _ in range(8):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        lines.append(rng.choice([f"{a} * {b} = {a * b}", f"{a * b} / {b} = {a}",
                                 f"{a} x {b} is {a * b}.", f"{a}^2 = {a * a}"]))
    return "\n".join(lines)


def fractions(rng):
    lines = []
    for _ in range(6):
        part, whole = rng.randint(1, 20), rng.choice([20, 25, 40, 50, 80, 200])
        lines.append(f"{part} of {whole} is {100 * part / whole:g} %, as a decimal {part / whole:g}.")
    return "\n".join(lines)


def sequences(rng):
    start, step, factor = rng.randint(1, 30), rng.randint(2, 12), rng.randint(2, 5)
    arithmetic = ", ".join(str(start + step * i) for i in range(8))
    geometric = ", ".join(str(start * factor**i) for i in range(7))
    squares = ", ".join(str(i * i) for i in range(start, start + 8))
    return (f"Add {step} each time: {arithmetic}.\nMultiply by {factor} each time: {geometric}.\n"
            f"Squares from {start}: {squares}.")


def units(rng):
    lines = []
    for _ in range(5):
        metres, kilos, celsius = rng.randint(1, 90) * 100, rng.randint(1, 60) / 4, rng.randint(-20, 40)
        lines.append(rng.choice([f"{metres} m = {metres / 1000:g} km = {metres * 100} cm",
                                 f"{kilos:g} kg = {kilos * 1000:g} g",
                                 f"{celsius} degrees Celsius are {celsius * 9 / 5 + 32:g} degrees Fahrenheit.",
                                 f"{metres} s = {metres // 60} min {metres % 60} s"]))
    return "\n".join(lines)


def equations(rng):
    a, x, b = rng.randint(2, 12), rng.randint(-9, 12), rng.randint(1, 40)
    p, q = rng.randint(-9, 9), rng.randint(-9, 9)
    return (f"Solve {a}x + {b} = {a * x + b}.\nSubtract {b} from both sides: {a}x = {a * x}.\n"
            f"Divide by {a}: x = {x}.\n\nExpand (x + {p})(x + {q}): "
            f"x^2 + {p + q}x + {p * q}.".replace("+ -", "- "))


def person(rng):
    name = rng.choice(NAMES)
    return {"id": rng.randint(1000, 9999), "name": name, "city": rng.choice(CITIES),
            "email": name.lower().replace(" ", ".") + "@example.org",
            "age": rng.randint(18, 79), "active": rng.random() < 0.7}


def json_record(rng):
    record = {"order": f"{rng.randint(10, 99)}-{rng.randint(10000, 99999)}", "customer": person(rng),
              "items": [{"name": rng.choice(GOODS), "quantity": rng.randint(1, 9),
                         "price": rng.randint(99, 9999) / 100} for _ in range(rng.randint(1, 3))],
              "note": rng.choice([None, "leave at the door", "gift", ""]), "paid": rng.random() < 0.8}
    return json.dumps(record, indent=rng.choice([2, 4]))


def json_list(rng):
    return "\n".join(json.dumps(person(rng), separators=rng.choice([(",", ":"), (", ", ": ")]))
                     for _ in range(5))


def csv_table(rng):
    rows, month = ["date,city,item,units,price"], rng.randint(1, 12)
    for day in sorted(rng.sample(range(1, 29), 9)):
        rows.append(f"2023-{month:02}-{day:02},{rng.choice(CITIES)},{rng.choice(GOODS)},"
                    f"{rng.randint(1, 200)},{rng.randint(199, 9999) / 100:.2f}")
    return "\n".join(rows)


def markdown_table(rng):
    rows = ["| City | Visitors | Change | Rating |", "|---|---:|---:|---:|"]
    for city in rng.sample(CITIES, 7):
        rows.append(f"| {city} | {rng.randint(1000, 99999):,} | {rng.uniform(-20, 30):+.1f} % "
                    f"| {rng.uniform(2, 5):.1f} |")
    return "\n".join(rows)


def fixed_table(rng):
    rows = [f"{'item':<16}{'stock':>8}{'price':>10}{'value':>12}"]
    for item in rng.sample(GOODS, 7):
        stock, cents = rng.randint(0, 400), rng.randint(150, 9000)
        rows.append(f"{item:<16}{stock:>8}{cents / 100:>10.2f}{stock * cents / 100:>12.2f}")
    return "\n".join(rows)


def log_lines(rng):
    second, day, lines = rng.randint(0, 80_000), rng.randint(1, 28), []
    for _ in range(9):
        second += rng.randint(0, 90)
        level, message = rng.choice([
            ("INFO", f"GET /api/items/{rng.randint(1, 999)} 200 {rng.randint(2, 90)} ms"),
            ("INFO", f"user {rng.randint(100, 999)} signed in from 192.0.2.{rng.randint(1, 254)}"),
            ("WARN", f"slow query: {rng.randint(900, 9000)} ms"),
            ("ERROR", "connection reset by peer, trying again in 5 s"),
            ("DEBUG", f"cache hit, key={rng.getrandbits(32):08x}")])
        clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        lines.append(f"2024-03-{day:02} {clock} {level:<5} {message}")
    return "\n".join(lines)


def timetable(rng):
    minute, lines = rng.randint(300, 700), [f"Line {rng.randint(2, 90)} towards {rng.choice(CITIES)}"]
    for stop in ["Central Station", "Market Square", "Town Hall", "University", "Hospital", "Airport"]:
        lines.append(f"{minute // 60:02}:{minute % 60:02}  {stop}")
        minute += rng.randint(3, 14)
    return "\n".join(lines)


def key_values(rng):
    who = person(rng)
    return (f"Name: {who['name']}\nCity: {who['city']}\nAge: {who['age']}\n"
            f"Telephone: +{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000000, 9999999)}\n"
            f"Member since: {rng.randint(1, 28)} {rng.choice(['March', 'June', 'October'])} "
            f"{rng.randint(1990, 2023)}\nColour: {rng.choice(COLOURS)}")


def xml_record(rng):
    who = person(rng)
    return (f'<person id="{who["id"]}">\n  <name>{who["name"]}</name>\n  <city>{who["city"]}</city>\n'
            f'  <age unit="years">{who["age"]}</age>\n  <active>{str(who["active"]).lower()}</active>\n'
            "</person>")


def dates(rng):
    year, month, day = rng.randint(1900, 2024), rng.randint(1, 12), rng.randint(1, 28)
    months = ("January February March April May June July August September October November "
              "December").split()
    return (f"{day} {months[month - 1]} {year}; {months[month - 1]} {day}, {year}; "
            f"{year}-{month:02}-{day:02}; {day:02}.{month:02}.{year}; {month}/{day}/{year % 100:02}")


def statistics(rng):
    values = [rng.randint(1, 60) for _ in range(rng.choice([5, 7, 9]))]
    ordered = sorted(values)
    return (f"Values: {', '.join(map(str, values))}. Sorted: {', '.join(map(str, ordered))}. "
            f"The smallest is {ordered[0]}, the largest {ordered[-1]}, the sum {sum(values)}, "
            f"the mean {sum(values) / len(values):.2f} and the median {ordered[len(values) // 2]}.")


def chat_json(rng):
    a, b = rng.sample(CITIES, 2)
    hours, minutes = rng.randint(1, 12), rng.randint(0, 59)
    return json.dumps([
        {"role": "system", "content": "You answer questions about flights in one sentence."},
        {"role": "user", "content": f"How long is the flight from {a} to {b}?"},
        {"role": "assistant", "content": f"It takes {hours} hours and {minutes} minutes."}], indent=1)


def function_calls(rng):
    name = rng.choice(GOODS).replace(" ", "_")
    price, tax, numbers = rng.randint(5, 80), rng.choice([7, 19, 20, 25]), rng.sample(range(99), 5)
    return (f">>> price = {{'{name}': {price}}}\n>>> price['{name}'] * {100 + tax} / 100\n"
            f"{price * (100 + tax) / 100}\n>>> sorted({numbers})\n{sorted(numbers)}\n"
            f">>> '{name}'.upper()\n'{name.upper()}'\n>>> len('{name}')\n{len(name)}")


def traceback(rng):
    line, key = rng.randint(5, 200), rng.choice(GOODS).split()[0]
    return ("Traceback (most recent call last):\n"
            f'  File "report.py", line {line}, in <module>\n    main()\n'
            f'  File "report.py", line {line - rng.randint(1, 4)}, in main\n    total += prices["{key}"]\n'
            f"KeyError: '{key}'")


def sentences_about_goods(rng):
    sentences = []
    for _ in range(4):
        name, good, colour = rng.choice(NAMES).split()[0], rng.choice(GOODS), rng.choice(COLOURS)
        sentences.append(rng.choice([
            f"{name} bought a {colour} {good} in {rng.choice(CITIES)} for {rng.randint(3, 90)} dollars.",
            f"The {colour} {good} on the table belongs to {name}.",
            f"In {rng.choice(CITIES)}, {name} sold {rng.randint(2, 40)} of them before noon.",
            f'"Is this your {good}?" asked {name}. "No," I said, "mine is {colour}."']))
    return " ".join(sentences)


def spread(lists):
    """Merges lists so that each is spaced evenly from beginning to end."""
    keyed = [((2 * i + 1) / (2 * len(items)), order, item)
             for order, items in enumerate(lists) for i, item in enumerate(items)]
    return [item for _, _, item in sorted(keyed, key=lambda entry: entry[:2])]


def own_documents():
    """What was written or generated for this project, without the public-domain excerpts."""
    return spread([written(), generated(random.Random(20240229))])


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python make.py CORPUS_FOLDER")
    corpus.fetch(sys.argv[1])
    documents = spread([excerpts(sys.argv[1]), written(), generated(random.Random(20240229))])
    text = "\n\n".join(re.sub(r"[ \t]+$", "", d, flags=re.MULTILINE) for d in documents) + "\n"
    (HERE / "mixed.txt").write_text(text, "utf-8", newline="\n")
    print(f"mixed.txt: {len(documents)} documents, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
