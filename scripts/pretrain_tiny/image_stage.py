"""Image pretraining: name what is drawn, where and in which colours, and paint hidden patches."""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FlavaModel

from scripts.pretrain_tiny.scenes import (
    COLOR_INDEX,
    COLORS,
    IMAGE_SIZE,
    KIND_INDEX,
    KINDS,
    PATCHES_PER_SIDE,
    Picture,
    draw_scene,
    sample_scene,
)

PATCH = IMAGE_SIZE // PATCHES_PER_SIDE
THUMBNAIL = 8
IGNORE = -100  # cross_entropy skips these targets


def to_pixel_values(pictures: list[Picture]) -> Tensor:
    """Return pixels as the processor does: (B, 3, 32, 32) in [-1, 1]."""
    pixels = torch.stack([torch.from_numpy(picture.pixels.copy()) for picture in pictures])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class ImageBatch:
    """Pictures with what there is to predict about them.

    Attributes:
        pixel_values: (B, 3, 32, 32) in [-1, 1].
        patch_kinds: (B, 16), the kind's index + 1, or 0 for background.
        kinds: (B, K) 0 / 1, every kind in the picture.
        colors: (B, C) 0 / 1, every thing's colour.
        kind: (B,) of the only thing, else IGNORE.
        color: (B,) of the only thing, else IGNORE.
        background: (B,), IGNORE for textures.
        place: (B, 3) x, y and size of the only thing, else nan.
        count: (B,).
    """

    pixel_values: Tensor
    patch_kinds: Tensor
    kinds: Tensor
    colors: Tensor
    kind: Tensor
    color: Tensor
    background: Tensor
    place: Tensor
    count: Tensor


def sample_image_batch(rng: Random, size: int, difficulty: float) -> ImageBatch:
    """Draw `size` scenes and their labels."""
    pictures = [draw_scene(sample_scene(rng, difficulty), rng) for _ in range(size)]
    kinds, colors = torch.zeros(size, len(KINDS)), torch.zeros(size, len(COLORS))
    kind, color, background = (torch.full((size,), IGNORE) for _ in range(3))
    place, count = torch.full((size, 3), torch.nan), torch.zeros(size, dtype=torch.long)
    for i, picture in enumerate(pictures):
        scene = picture.scene
        count[i] = len(scene.things)
        if scene.texture is not None:
            kinds[i, KIND_INDEX[scene.texture]] = 1
            kind[i] = KIND_INDEX[scene.texture]
            continue
        background[i] = COLOR_INDEX[scene.background]
        for thing in scene.things:
            kinds[i, KIND_INDEX[thing.kind]] = 1
            colors[i, COLOR_INDEX[thing.color]] = 1
        if len(scene.things) == 1:
            only = scene.things[0]
            kind[i], color[i] = KIND_INDEX[only.kind], COLOR_INDEX[only.color]
            place[i] = torch.tensor([only.x, only.y, only.size])
    patch_kinds = torch.stack([torch.from_numpy(picture.patch_kinds) for picture in pictures]) + 1
    return ImageBatch(to_pixel_values(pictures), patch_kinds, kinds, colors, kind, color, background, place, count)


class ImageHeads(nn.Module):
    """Linear read-outs used in pretraining only; they are thrown away afterwards."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kind = nn.Linear(hidden, len(KINDS))
        self.kinds = nn.Linear(hidden, len(KINDS))
        self.color = nn.Linear(hidden, len(COLORS))
        self.colors = nn.Linear(hidden, len(COLORS))
        self.background = nn.Linear(hidden, len(COLORS))
        self.place = nn.Linear(hidden, 3)
        self.count = nn.Linear(hidden, 4)
        self.thumbnail = nn.Linear(hidden, 3 * THUMBNAIL**2)
        self.patch_kind = nn.Linear(hidden, len(KINDS) + 1)
        self.patch_pixels = nn.Linear(hidden, 3 * PATCH**2)


def image_loss(
    model: FlavaModel, heads: ImageHeads, batch: ImageBatch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss and readings for the progress bar.

    The first half of the batch is seen whole; in the other half 40 % of the patches are hidden and must be painted.
    """
    size = len(batch.pixel_values)
    hidden = torch.rand(size, PATCHES_PER_SIDE**2, generator=generator) < 0.4
    hidden[: size // 2] = False
    states = model.image_model(batch.pixel_values, bool_masked_pos=hidden).last_hidden_state
    cls, patches = states[:, 0], states[:, 1:]
    kind_logits = heads.kind(cls)
    place = batch.place.isfinite()
    target_patches = F.unfold(batch.pixel_values, PATCH, stride=PATCH).transpose(1, 2)
    paint_errors = (heads.patch_pixels(patches) - target_patches).square().mean(-1)
    losses = {
        "kind": 2 * F.cross_entropy(kind_logits, batch.kind, ignore_index=IGNORE),
        "kinds": 8 * F.binary_cross_entropy_with_logits(heads.kinds(cls), batch.kinds),
        "color": 0.5 * F.cross_entropy(heads.color(cls), batch.color, ignore_index=IGNORE),
        "colors": 2 * F.binary_cross_entropy_with_logits(heads.colors(cls), batch.colors),
        "background": 0.3 * F.cross_entropy(heads.background(cls), batch.background, ignore_index=IGNORE),
        "place": 4 * F.l1_loss(heads.place(cls)[place], batch.place[place]),
        "count": 0.5 * F.cross_entropy(heads.count(cls), batch.count),
        "thumbnail": 2
        * F.mse_loss(heads.thumbnail(cls), F.adaptive_avg_pool2d(batch.pixel_values, THUMBNAIL).flatten(1)),
        "patch_kind": F.cross_entropy(heads.patch_kind(patches).flatten(0, 1), batch.patch_kinds.flatten()),
        "keep": 25 * paint_errors[~hidden].mean(),
        "paint": 4 * paint_errors[hidden].mean(),
    }
    named = batch.kind[: size // 2] != IGNORE
    correct = (kind_logits[: size // 2].argmax(-1) == batch.kind[: size // 2])[named]
    readings = {
        name: round(value.item(), 3) for name, value in losses.items() if name in ("kind", "keep", "paint", "thumbnail")
    }
    return torch.stack(list(losses.values())).sum(), {**readings, "kind_right": round(correct.float().mean().item(), 3)}
