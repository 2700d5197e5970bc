"""Tiny `PeftModel`s with random weights and data they can learn, as a user of plain PEFT has them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

_LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,  # so that adapters matter
}
LENGTH, VOCABULARY = 6, 12


class Rows(Dataset[dict[str, Tensor]]):
    """Random tokens; the label is what `of` makes of them."""

    def __init__(self, size: int, kind: str = "classes", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.input_ids = torch.randint(3, VOCABULARY, (size, LENGTH), generator=generator)
        self.kind = kind

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.input_ids[index]
        if self.kind == "tokens":
            labels = tokens.clone()
            labels[: 1 + index % 3] = -100
        else:
            labels = (tokens[0] > 7).long() if self.kind == "classes" else tokens.float().mean() / 10
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def lora(task_type: TaskType, **changes: Any) -> LoraConfig:
    targets = ["q_proj", "v_proj"] if task_type is TaskType.CAUSAL_LM else ["query", "value"]
    options = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": targets, "task_type": task_type}
    return LoraConfig(**{**options, **changes})


def build(kind: str = "classes", seed: int = 0, *adapters: str, **changes: Any) -> PeftModel:
    """Return a model with the active adapter `default` and others; all of them, B included, have random values."""
    torch.manual_seed(7)  # one base for all
    if kind == "tokens":
        config = LlamaConfig(**_LAYERS, vocab_size=VOCABULARY, max_position_embeddings=16, pad_token_id=0)
        base, task_type = LlamaForCausalLM(config), TaskType.CAUSAL_LM
    else:
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # but in the adapters
        config = BertConfig(**_LAYERS, **no_dropout, vocab_size=VOCABULARY, max_position_embeddings=16)
        config.num_labels = 2 if kind == "classes" else 1
        base, task_type = BertForSequenceClassification(config), TaskType.SEQ_CLS
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for a name that it has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(base, lora(task_type, **changes))
        for name in adapters:
            model.add_adapter(name, lora(task_type, **changes))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "learning_rate": 1e-2}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    return TrainingArguments(str(folder), **{**options, **quiet, "label_names": ["labels"], **changes})


def trained_parameters(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


class Weighted(Trainer):
    """A user's own subclass: the second class counts ten times."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        weights = torch.tensor([1.0, 10.0])
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], weights)
        return (loss, outputs) if return_outputs else loss
