"""Measure what the embedded backbone is worth: `python -m benchmarks.tiny_backbone [--fashion DIR] [--out FILE]`.

The backbone stays frozen; every arm takes the same number of steps over the same samples, none of which pretraining
saw. Independent from the rest of `tap_hf`: a plain loop with PEFT.
"""

import argparse
import gzip
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import simple_icd_10_cm as icd
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoProcessor, FlavaModel

from scripts.pretrain_tiny.architecture import new_model
from tap_hf.models.backbones.tiny import checkpoint_dir

QUERY_VALUE = r"attention\.attention\.(query|value)"
ALL_LINEAR = r"(attention\.attention\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)"
TABLE_START, TABLE_END = "<!-- table: python -m benchmarks.tiny_backbone --card -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Arm:
    """A way to use the backbone: which weights, and which layers get LoRA (`None`: the head alone learns)."""

    name: str
    weights: Literal["random", "pretrained"]
    lora: str | None


ARMS = (
    Arm("random + LoRA all linear", "random", ALL_LINEAR),
    Arm("pretrained, head only", "pretrained", None),
    Arm("pretrained + LoRA q,v", "pretrained", QUERY_VALUE),
    Arm("pretrained + LoRA all linear", "pretrained", ALL_LINEAR),
)


@dataclass(frozen=True)
class Regime:
    """How much data and how many steps."""

    name: str
    samples: int
    steps: int
    batch: int


REGIMES = (Regime("ample", 3000, 300, 32), Regime("scarce", 80, 200, 16))
TEST_SAMPLES = 1000


@dataclass(frozen=True)
class Task:
    """One tensorised data set: backbone inputs, targets (N,) or (N, 1, 32, 32), and what the simple baseline sees."""

    name: str
    towers: tuple[str, ...]
    inputs: dict[str, Tensor]
    targets: Tensor
    simple_name: str
    simple: Sequence[Any]

    @property
    def is_reconstruction(self) -> bool:
        return self.targets.is_floating_point()


def pictures(processor: Any, arrays: Sequence[np.ndarray]) -> Tensor:
    images = [Image.fromarray(array).convert("RGB") for array in arrays]
    return processor.image_processor(images=images, return_tensors="pt")["pixel_values"]


def tokens(processor: Any, texts: list[str]) -> dict[str, Tensor]:
    encoded = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def digits(processor: Any) -> Task:
    data = load_digits()
    pixels = (data.images * 255 / 16).astype(np.uint8)
    inputs = {"pixel_values": pictures(processor, list(pixels))}
    return Task("digits, 10 classes", ("image_model",), inputs, torch.tensor(data.target), "pixels", data.data / 16)


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def fashion(processor: Any, folder: Path) -> Task:
    pixels, labels = (
        read_idx(folder / "train-images-idx3-ubyte.gz")[:6000],
        read_idx(folder / "train-labels-idx1-ubyte.gz")[:6000],
    )
    inputs = {"pixel_values": pictures(processor, list(pixels))}
    simple = pixels.reshape(len(pixels), -1) / 255
    return Task(
        "Fashion-MNIST, 10 classes", ("image_model",), inputs, torch.tensor(labels.astype(np.int64)), "pixels", simple
    )


def reconstruction(task: Task) -> Task:
    target = (task.inputs["pixel_values"].mean(1, keepdim=True) + 1) / 2
    return Task(
        f"{task.name.split(',')[0]} reconstruction, MSE", task.towers, task.inputs, target, "mean image", task.simple
    )


def easy_vqa(processor: Any) -> Task:
    folder = Path(str(files("easy_vqa"))) / "data" / "train"
    rows = json.loads((folder / "questions.json").read_text())
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:6000]]
    questions, answers = [row[0] for row in rows], [row[1] for row in rows]
    index = {answer: i for i, answer in enumerate(sorted(set(answers)))}
    pixels = [np.asarray(Image.open(folder / "images" / f"{row[2]}.png").convert("RGB")) for row in rows]
    inputs = {"pixel_values": pictures(processor, pixels), **tokens(processor, questions)}
    targets = torch.tensor([index[answer] for answer in answers])
    return Task(
        "easy-VQA, 13 answers",
        ("image_model", "text_model", "multimodal_model"),
        inputs,
        targets,
        "question only",
        questions,
    )


def icd_chapters(processor: Any) -> Task:
    chapter_of = {
        icd.get_description(code): icd.get_ancestors(code)[-1] for code in icd.get_all_codes() if icd.is_leaf(code)
    }
    texts = sorted(chapter_of)
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:6000]]
    index = {chapter: i for i, chapter in enumerate(sorted(set(chapter_of.values())))}
    targets = torch.tensor([index[chapter_of[text]] for text in texts])
    return Task("ICD-10 description, 22 chapters", ("text_model",), tokens(processor, texts), targets, "tf-idf", texts)


class Probe(nn.Module):
    """A FLAVA tower, or all of it, with a linear head: CLS -> classes, or each patch state -> its 8 x 8 grey pixels."""

    def __init__(self, task: Task, arm: Arm, seed: int) -> None:
        super().__init__()
        pretrained = arm.weights == "pretrained"
        self.task = task
        self.flava = (
            FlavaModel.from_pretrained(checkpoint_dir(), dtype=torch.float32) if pretrained else new_model(seed)
        )
        self.flava.requires_grad_(False)
        torch.manual_seed(seed)
        if arm.lora is not None:
            modules = rf"({'|'.join(task.towers)})\.encoder\.layer\.\d+\.{arm.lora}"
            get_peft_model(self.flava, LoraConfig(r=8, lora_alpha=16, target_modules=modules))  # Injects in place.
        outputs = 64 if task.is_reconstruction else int(task.targets.max()) + 1
        self.head = nn.Linear(self.flava.config.hidden_size, outputs)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        if len(self.task.towers) > 1:
            states = self.flava(**inputs).multimodal_output.last_hidden_state
        else:
            states = getattr(self.flava, self.task.towers[0])(**inputs).last_hidden_state
        if self.task.is_reconstruction:
            return F.fold(self.head(states[:, 1:]).transpose(1, 2), 32, kernel_size=8, stride=8)
        return self.head(states[:, 0])


def pick(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Take rows, and cut the text to the longest of them."""
    picked = {name: value[rows] for name, value in inputs.items()}
    if "attention_mask" in picked:
        longest = int(picked["attention_mask"].sum(1).max())
        picked |= {name: picked[name][:, :longest] for name in ("input_ids", "attention_mask")}
    return picked


def train_and_score(
    task: Task, arm: Arm, regime: Regime, train: Tensor, test: Tensor, seed: int, rates: tuple[float, float]
) -> float:
    """Return test accuracy, or mean squared error for reconstruction."""
    probe = Probe(task, arm, seed)
    adapters = [parameter for parameter in probe.flava.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": adapters, "lr": rates[0]}, {"params": probe.head.parameters(), "lr": rates[1]}], weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / regime.steps)
    generator = torch.Generator().manual_seed(seed)
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.mse_loss if task.is_reconstruction else F.cross_entropy
    order = torch.cat(
        [torch.randperm(len(train), generator=generator) for _ in range(regime.steps * regime.batch // len(train) + 1)]
    )
    for step in range(regime.steps):
        rows = train[order[step * regime.batch : (step + 1) * regime.batch]]
        loss = loss_of(probe(pick(task.inputs, rows)), task.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predictions = torch.cat([probe(pick(task.inputs, rows)) for rows in test.split(250)])
    if task.is_reconstruction:
        return F.mse_loss(predictions, task.targets[test]).item()
    return (predictions.argmax(1) == task.targets[test]).float().mean().item()


def simple_score(task: Task, train: Tensor, test: Tensor) -> float:
    """Score the simple baseline: logistic regression on pixels or tf-idf, or the training samples' mean picture."""
    if task.is_reconstruction:
        return F.mse_loss(task.targets[train].mean(0).expand_as(task.targets[test]), task.targets[test]).item()
    seen, unseen = [task.simple[i] for i in train], [task.simple[i] for i in test]
    if isinstance(seen[0], str):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2))
        seen, unseen = vectorizer.fit_transform(seen), vectorizer.transform(unseen)
    model = LogisticRegression(C=10, max_iter=2000).fit(seen, task.targets[train].numpy())
    return float(model.score(unseen, task.targets[test].numpy()))


def split(task: Task, regime: Regime, seed: int) -> tuple[Tensor, Tensor]:
    """Return (train, test) rows; a small data set gives a third to the test."""
    order = torch.randperm(len(task.targets), generator=torch.Generator().manual_seed(seed))
    test_size = min(TEST_SAMPLES, len(order) // 3)
    return order[test_size : test_size + regime.samples], order[:test_size]


def table(tasks: list[Task], seeds: int, rates: tuple[float, float]) -> str:
    """Run everything; return a markdown table of mean +- standard deviation over seeds."""
    lines = [
        "| " + " | ".join(["data", "train samples", *(arm.name for arm in ARMS), "simple baseline"]) + " |",
        "|---" * 7 + "|",
    ]
    bar = tqdm(total=len(tasks) * len(REGIMES) * seeds * len(ARMS))
    for regime in REGIMES:
        for task in tasks:
            scores: dict[str, list[float]] = {}
            for seed in range(seeds):
                train, test = split(task, regime, seed)
                for arm in ARMS:
                    scores.setdefault(arm.name, []).append(train_and_score(task, arm, regime, train, test, seed, rates))
                    bar.update()
                scores.setdefault("simple", []).append(simple_score(task, train, test))
            digits_shown = 4 if task.is_reconstruction else 3
            cells = [
                f"{mean(values):.{digits_shown}f} ± {stdev(values):.{digits_shown}f}" for values in scores.values()
            ]
            lines.append(
                "| " + " | ".join([task.name, str(len(train)), *cells[:-1], f"{task.simple_name} {cells[-1]}"]) + " |"
            )
            tqdm.write(lines[-1])
    return "\n".join(lines)


def write_into_card(markdown: str) -> None:
    """Replace the part of the checkpoint's card between the two table markers."""
    card = checkpoint_dir() / "README.md"
    before, _, rest = card.read_text().partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    card.write_text(f"{before}{TABLE_START}\n{markdown}\n{TABLE_END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fashion", type=Path, help="folder with Fashion-MNIST's train-*-ubyte.gz (Debian: dataset-fashion-mnist)"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--card", action="store_true", help="also write the table into the checkpoint's card")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lora-rate", type=float, default=3e-3)
    parser.add_argument("--head-rate", type=float, default=1e-2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="peft")
    processor = AutoProcessor.from_pretrained(checkpoint_dir())
    tasks = [digits(processor), easy_vqa(processor), icd_chapters(processor)]
    if arguments.fashion is not None:
        tasks.insert(1, fashion(processor, arguments.fashion))
    tasks.append(reconstruction(tasks[1] if arguments.fashion is not None else tasks[0]))
    markdown = table(tasks, arguments.seeds, (arguments.lora_rate, arguments.head_rate))
    if arguments.out is not None:
        arguments.out.write_text(markdown + "\n")
    if arguments.card:
        write_into_card(markdown)


if __name__ == "__main__":
    main()
