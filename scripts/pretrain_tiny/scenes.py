"""Scenes: what is in a generated picture, how one is sampled, and how it is drawn.

Drawing uses PIL polygons and lines on a canvas of twice the final size, averaged down for smooth edges.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from scripts.pretrain_tiny.outlines import GLYPHS, SHAPES, SILHOUETTES, Path

IMAGE_SIZE = 32
PATCHES_PER_SIDE = 4
OVERSAMPLING = 2

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35), "green": (35, 160, 50), "blue": (35, 60, 220), "yellow": (240, 225, 40),
    "orange": (245, 140, 25), "purple": (140, 45, 175), "pink": (250, 150, 195), "brown": (130, 75, 35),
    "gray": (130, 130, 130), "black": (15, 15, 15), "white": (242, 242, 242), "teal": (20, 145, 145),
}  # fmt: skip
TEXTURES = ("stripes", "checks", "dots", "waves", "noise")
KINDS: tuple[str, ...] = (*SHAPES, *SILHOUETTES, *GLYPHS, *TEXTURES)
KIND_INDEX = {kind: index for index, kind in enumerate(KINDS)}
COLOR_INDEX = {color: index for index, color in enumerate(COLORS)}


@dataclass(frozen=True)
class Thing:
    """One drawn thing. Position and size are fractions of the picture; angle in degrees."""

    kind: str
    color: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    aspect: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Things on a background. `things` is empty for a pure texture."""

    things: tuple[Thing, ...]
    background: str
    texture: str | None = None
    gray: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawn scene: pixels (32, 32, 3) uint8 and the kind of thing in each patch (16,), -1 for background."""

    scene: Scene
    pixels: np.ndarray
    patch_kinds: np.ndarray


def sample_scene(rng: Random, difficulty: float) -> Scene:
    """Sample a scene.

    Difficulty 0 is one large centred light thing on a dark ground; 1 is up to three, anywhere, any size, any colours.
    With random colours from the start the untrained patch embedding cannot see outlines, and nothing is learned.
    """
    draw = rng.random()
    if draw < 0.45:
        return _shape_scene(rng, difficulty)
    if draw < 0.75:
        return _single_scene(rng, difficulty, tuple(GLYPHS))
    if draw < 0.95:
        return _single_scene(rng, difficulty, tuple(SILHOUETTES))
    return Scene((), rng.choice(tuple(COLORS)), rng.choice(TEXTURES), gray=rng.random() < 0.3)


def _shape_scene(rng: Random, difficulty: float) -> Scene:
    if rng.random() > min(0.8, 2 * difficulty):
        return _single_scene(rng, difficulty, tuple(SHAPES))
    count = 1 if rng.random() > 0.6 * difficulty else rng.choice((2, 2, 3))
    background, *colors = rng.sample(tuple(COLORS), 1 + count)
    things: list[Thing] = []
    for color in colors:
        for _ in range(12):  # A crowded picture keeps fewer things rather than overlapping ones.
            thing = _place(rng, difficulty, rng.choice(tuple(SHAPES)), color, largest=0.42 if count == 1 else 0.25)
            if all(math.hypot(thing.x - other.x, thing.y - other.y) > thing.size + other.size for other in things):
                things.append(thing)
                break
    return Scene(tuple(things), background)


def _single_scene(rng: Random, difficulty: float, kinds: tuple[str, ...]) -> Scene:
    gray = rng.random() > 0.5 * difficulty
    if not gray:
        background, color = rng.sample(tuple(COLORS), 2)
    elif rng.random() > 0.3 * difficulty:
        background, color = "black", "white"
    else:
        background, color = rng.choice((("white", "black"), ("black", "gray"), ("white", "gray"), ("gray", "black")))
    return Scene((_place(rng, difficulty, rng.choice(kinds), color, largest=0.5),), background, gray=gray)


def _place(rng: Random, difficulty: float, kind: str, color: str, largest: float) -> Thing:
    smallest = 0.12 if kind in SHAPES else 0.28  # Smaller glyphs and silhouettes cannot be told apart in 32 pixels.
    size = rng.uniform(largest - 0.06 - difficulty * max(0.0, largest - 0.06 - smallest), largest)
    slack = max(0.0, 0.5 - size) * difficulty
    tilt = 180.0 if kind in ("triangle", "star", "pentagon", "moon", "arrow") else 15.0
    x, y = 0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack)
    return Thing(kind, color, x, y, size, rng.uniform(-tilt, tilt) * difficulty, _aspect(rng, kind))


def _aspect(rng: Random, kind: str) -> float:
    if kind == "ellipse":
        return rng.choice((rng.uniform(0.4, 0.65), 1 / rng.uniform(0.4, 0.65)))
    if kind == "circle":
        return 1.0
    return math.exp(rng.uniform(-0.7, 0.7) if kind == "rectangle" else rng.uniform(-0.25, 0.25))


def draw_scene(scene: Scene, rng: Random) -> Picture:
    """Draw a scene; small deviations of colour, outline, sharpness and noise come from `rng`."""
    side = IMAGE_SIZE * OVERSAMPLING
    background = _shade(rng, scene.background, scene.gray)
    if scene.texture is not None:
        pixels = _texture(rng, scene.texture, background)
        return Picture(scene, pixels, np.full(PATCHES_PER_SIDE**2, KIND_INDEX[scene.texture]))
    canvas, labels = Image.new("RGB", (side, side), background), Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    pen, label_pen = ImageDraw.Draw(canvas), ImageDraw.Draw(labels)
    for index, thing in enumerate(scene.things, start=1):
        strokes, width = _strokes(rng, thing)
        color = _shade(rng, thing.color, scene.gray)
        for stroke in strokes:
            _draw(pen, stroke, side, color, width)
            _draw(label_pen, stroke, IMAGE_SIZE, index, width)
    small = canvas.reduce(OVERSAMPLING)
    if rng.random() < 0.3:  # Coarse pictures, as from a small sensor.
        coarse = rng.choice((8, 10, 12, 16))
        small = small.resize((coarse, coarse), Image.Resampling.BOX).resize(
            (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR
        )
    pixels = np.asarray(small)
    if rng.random() < 0.3:
        pixels = (pixels * _shading(rng)).astype(np.uint8)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 14), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return Picture(scene, pixels, _patch_kinds(scene, np.asarray(labels)))


def _shade(rng: Random, color: str, gray: bool) -> tuple[int, int, int]:
    base = COLORS[color]
    if gray:
        level = max(0, min(255, base[0] + rng.randint(-15, 15) - (rng.randint(0, 90) if color == "white" else 0)))
        return (level, level, level)
    red, green, blue = (max(0, min(255, channel + rng.randint(-18, 18))) for channel in base)
    return (red, green, blue)


def _strokes(rng: Random, thing: Thing) -> tuple[list[Path], float]:
    """Return the thing's paths in picture fractions, and the line width (0 means filled)."""
    if thing.kind in GLYPHS:
        paths, width, bend = rng.choice(GLYPHS[thing.kind]), thing.size * rng.uniform(0.15, 0.42), 0.16
    else:
        paths, width, bend = (
            [SHAPES.get(thing.kind) or SILHOUETTES[thing.kind]],
            0.0,
            0.0 if thing.kind in SHAPES else 0.1,
        )
    bend_x, bend_y, phase_x, phase_y = rng.gauss(0, bend), rng.gauss(0, bend), rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    mirrored = -1 if thing.kind in SILHOUETTES and rng.random() < 0.5 else 1
    turn, stretch, slant = (
        math.radians(thing.angle),
        math.sqrt(thing.aspect),
        rng.uniform(-0.25, 0.25) if width else 0.0,
    )
    cos, sin = math.cos(turn) * thing.size, math.sin(turn) * thing.size
    longest = max(stretch, 1 / stretch)
    moved = []
    for path in paths:
        points = []
        for x, y in path:
            x, y = x + bend_x * math.sin(2 * y + phase_x), y + bend_y * math.sin(2 * x + phase_y)
            x, y = mirrored * (x - slant * y) * stretch / longest, y / stretch / longest
            points.append((thing.x + x * cos - y * sin, thing.y + x * sin + y * cos))
        moved.append(points)
    return moved, width


def _draw(pen: ImageDraw.ImageDraw, path: Path, side: int, fill: int | tuple[int, int, int], width: float) -> None:
    points = [(x * side, y * side) for x, y in path]
    if width:
        pen.line(points, fill=fill, width=max(1, round(width * side)), joint="curve")
    else:
        pen.polygon(points, fill=fill)


def _patch_kinds(scene: Scene, labels: np.ndarray) -> np.ndarray:
    """Name each patch after the thing that covers at least an eighth of it, -1 where none does."""
    cell = IMAGE_SIZE // PATCHES_PER_SIDE
    patches = (
        labels.reshape(PATCHES_PER_SIDE, cell, PATCHES_PER_SIDE, cell).swapaxes(1, 2).reshape(PATCHES_PER_SIDE**2, -1)
    )
    kinds, most = np.full(len(patches), -1), np.full(len(patches), cell * cell // 8)
    for index, thing in enumerate(scene.things, start=1):
        covered = (patches == index).sum(1)
        kinds[covered >= most] = KIND_INDEX[thing.kind]
        most = np.maximum(most, covered)
    return kinds


def _shading(rng: Random) -> np.ndarray:
    """Return soft light and shade or folds, (32, 32, 1) in [0, 1]."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / IMAGE_SIZE
    across, down = rng.gauss(0, 3), rng.gauss(0, 3)
    if rng.random() < 0.4:
        across, down = 6 * across, 6 * down
    wave = np.sin(across * x + down * y + rng.uniform(0, 6.3))
    return (1 - rng.uniform(0.1, 0.6) * (wave + 1) / 2)[..., None]


def _texture(rng: Random, name: str, color: tuple[int, int, int]) -> np.ndarray:
    other = np.array([rng.randint(0, 255) for _ in range(3)])
    if max(abs(other - color)) < 60:
        other = 255 - np.array(color)
    turn, pitch, phase = rng.uniform(0, math.pi), rng.uniform(4, 12), rng.uniform(0, 10)
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
    along, across = x * math.cos(turn) + y * math.sin(turn) + phase, y * math.cos(turn) - x * math.sin(turn) + phase
    wave, cross_wave = np.sin(along * 2 * math.pi / pitch), np.sin(across * 2 * math.pi / pitch)
    if name == "stripes":
        level = np.clip(wave * 3, -1, 1)
    elif name == "checks":
        level = np.clip(wave * cross_wave * 4, -1, 1)
    elif name == "dots":
        level = np.clip((wave + cross_wave - 1) * 3, -1, 1)
    elif name == "waves":
        level = np.sin(np.hypot(x - phase * 3, y - phase) * 2 * math.pi / pitch)
    else:
        level = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, x.shape)
    mix = ((level + 1) / 2)[..., None]
    return (mix * np.array(color) + (1 - mix) * other).astype(np.uint8)
