"""Questions about a scene with one-word answers, and captions that describe it."""

from dataclasses import dataclass
from random import Random

from scripts.pretrain_tiny.outlines import GLYPHS, SHAPES
from scripts.pretrain_tiny.scenes import COLORS, KINDS, TEXTURES, Scene, Thing

COUNTS = ("zero", "one", "two", "three")
PLACES = ("left", "right", "top", "bottom", "middle")
ANSWERS: tuple[str, ...] = ("yes", "no", *COUNTS, *PLACES, *COLORS, *KINDS)
ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}

_PICTURE = ("picture", "image", "drawing")
_THING = ("thing", "object", "shape", "figure")
_IS_THERE = (
    "is there {x} in the {p}?", "is there {x}?", "does the {p} show {x}?", "does the {p} contain {x}?",
    "can you see {x}?", "do you see {x} in the {p}?", "is {x} present?",
)  # fmt: skip
_IS_THERE_NOT = (
    "is there no {n} in the {p}?", "is there no {n}?", "does the {p} not show {x}?", "does the {p} not contain {x}?",
    "is there not {x}?", "is no {n} present?", "is {x} missing?",
)  # fmt: skip
_WHICH_KIND = ("what {t} is in the {p}?", "what {t} is shown?", "what {t} does the {p} show?", "what is in the {p}?")
_WHICH_COLOR = ("what color is the {n}?", "what is the color of the {n}?", "which color does the {n} have?")
_WHERE = ("where is the {n}?", "where in the {p} is the {n}?")


@dataclass(frozen=True)
class Question:
    """A question and its answer, one of `ANSWERS`."""

    text: str
    answer: str


def kind_name(kind: str) -> str:
    """Say a kind in words: "digit 7", "letter a", "red" stays "red"."""
    if kind in GLYPHS:
        return ("digit " if kind.isdigit() else "letter ") + kind
    return kind


def article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def ask(scene: Scene, rng: Random) -> Question:
    """Ask something about the scene that has exactly one right answer."""
    words = {"p": rng.choice(_PICTURE), "t": rng.choice(_THING)}
    if scene.texture is not None:
        return Question(
            rng.choice(("what pattern is this?", "which pattern fills the {p}?")).format(**words), scene.texture
        )
    thing = rng.choice(scene.things)
    unique = sum(other.kind == thing.kind for other in scene.things) == 1
    draw = rng.random()
    if draw < 0.4:
        return _ask_presence(scene, rng, words)
    if draw < 0.65 and unique:
        noun = words["t"] if len(scene.things) == 1 and rng.random() < 0.5 else kind_name(thing.kind)
        return Question(rng.choice(_WHICH_COLOR).format(n=noun, **words), thing.color)
    if draw < 0.85:
        if len(scene.things) == 1 and rng.random() < 0.7:
            return Question(rng.choice(_WHICH_KIND).format(**words), thing.kind)
        return Question("what is the {c} {t}?".format(c=thing.color, **words), thing.kind)
    if draw < 0.9:
        return Question("how many {t}s are there?".format(**words), COUNTS[len(scene.things)])
    if draw < 0.95 and unique:
        return Question(rng.choice(_WHERE).format(n=kind_name(thing.kind), **words), _place(thing))
    return Question(rng.choice(("what color is the background?", "what is the background color?")), scene.background)


def _ask_presence(scene: Scene, rng: Random, words: dict[str, str]) -> Question:
    thing = rng.choice(scene.things)
    alike: tuple[str, ...] = tuple(SHAPES) if thing.kind in SHAPES else KINDS[: -len(TEXTURES)]
    there = rng.random() < 0.5
    about = rng.random()
    if about < 0.5:
        kind = thing.kind if there else rng.choice([k for k in alike if all(k != other.kind for other in scene.things)])
        noun = kind_name(kind)
    elif about < 0.85:
        color = (
            thing.color if there else rng.choice([c for c in COLORS if all(c != other.color for other in scene.things)])
        )
        noun = f"{color} {words['t']}"
    else:
        color, kind = thing.color, thing.kind
        if not there:
            color, kind = rng.choice(
                (
                    (rng.choice([c for c in COLORS if c != color]), kind),
                    (color, rng.choice([k for k in alike if k != kind])),
                )
            )
            there = any((other.color, other.kind) == (color, kind) for other in scene.things)
        noun = f"{color} {kind_name(kind)}"
    negated = rng.random() < 0.35
    text = rng.choice(_IS_THERE_NOT if negated else _IS_THERE).format(x=article(noun), n=noun, **words)
    return Question(text, "yes" if there != negated else "no")


def _place(thing: Thing) -> str:
    right, down = thing.x - 0.5, thing.y - 0.5
    if max(abs(right), abs(down)) < 0.1:
        return "middle"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def caption(scene: Scene, rng: Random) -> str:
    """Describe the scene in one sentence."""
    if scene.texture is not None:
        return f"{rng.choice(('a picture', 'an image', 'a pattern'))} of {scene.texture}"
    things = " and ".join(article(f"{thing.color} {kind_name(thing.kind)}") for thing in scene.things)
    return rng.choice(("{} on a {} background", "a picture of {} on {}", "there is {} in front of {}")).format(
        things, scene.background
    )
