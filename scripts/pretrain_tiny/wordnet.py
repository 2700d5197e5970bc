"""WordNet read from its own data files: words, definitions, examples, and what each meaning is a kind or part of."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIR = Path("/usr/share/wordnet")  # Debian and Ubuntu: apt-get install wordnet-base
FILES = ("noun", "verb", "adj", "adv")
BROADER = ("@", "@i", "#p", ";c")  # kind of, instance of, part of, in the field of (WordNet's pointer symbols)
NUM_CATEGORIES = 45  # lexicographer files: noun.animal, noun.artifact, ... , verb.motion, ... (lexnames(5WN))


@dataclass(frozen=True)
class Meaning:
    """One synset. `broader` holds its direct broader synsets' keys, such as "n02084071"."""

    key: str
    words: tuple[str, ...]
    category: int
    definition: str
    examples: tuple[str, ...]
    broader: tuple[str, ...]


def read_meanings(folder: Path) -> list[Meaning]:
    """Read all synsets of WordNet 3.0's `data.*` files, in file order."""
    missing = [name for name in FILES if not (folder / f"data.{name}").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no WordNet file data.{missing[0]}. "
            "Needed: WordNet 3.0's data.noun, data.verb, data.adj, data.adv. "
            "On Debian or Ubuntu run `apt-get install wordnet-base`, or pass --wordnet DIR."
        )
    meanings = []
    for name in FILES:
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # The licence at the top of each file is indented.
                meanings.append(_parse(line))
    return meanings


def _parse(line: str) -> Meaning:
    record, _, gloss = line.partition(" | ")
    fields = record.split()
    part_of_speech = "a" if fields[2] == "s" else fields[2]
    word_count = int(fields[3], 16)
    words = tuple(word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * word_count : 2])
    pointers = fields[5 + 2 * word_count :]
    broader = tuple(
        pointers[i + 2] + pointers[i + 1]
        for i in range(0, 4 * int(fields[4 + 2 * word_count]), 4)
        if pointers[i] in BROADER
    )
    definition, *quoted = gloss.split('"')
    return Meaning(
        key=part_of_speech + fields[0],
        words=words,
        category=int(fields[1]),
        definition=definition.strip(" ;\n"),
        examples=tuple(text for text in quoted[::2] if len(text) > 8),
        broader=broader,
    )


def ancestor_labels(meanings: list[Meaning], count: int) -> list[tuple[int, ...]]:
    """Return for each meaning which of the `count` most frequent ancestors it has.

    Ancestors are everything reached by "kind of", "part of" and "field of" links: a femur is a bone, a body part, ...
    """
    direct = {meaning.key: meaning.broader for meaning in meanings}
    reached: dict[str, frozenset[str]] = {}

    def closure(key: str, path: tuple[str, ...]) -> frozenset[str]:
        if key not in reached:
            above: set[str] = set()
            for parent in direct.get(key, ()):
                if parent not in path:  # WordNet 3.0 has one loop among its verbs.
                    above |= {parent} | closure(parent, (*path, key))
            reached[key] = frozenset(above)
        return reached[key]

    all_ancestors = [closure(meaning.key, ()) for meaning in meanings]
    frequency = Counter(key for ancestors in all_ancestors for key in ancestors)
    ranked = sorted(frequency, key=lambda key: (-frequency[key], key))[:count]
    index = {key: i for i, key in enumerate(ranked)}
    return [tuple(sorted(index[key] for key in ancestors if key in index)) for ancestors in all_ancestors]
