"""AdapterReplacementCallback with load_best_model_at_end: which checkpoint does Trainer call the best?"""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import tap_hf


def bert():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, **size))


def lora_bert():
    return get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))


def rows(seed, count, noisy=False):
    draw, made = torch.Generator().manual_seed(seed), []
    for i in range(count):
        label = int(torch.randint(0, 2, (1,), generator=draw))
        tokens = torch.randint(1, 100, (12,), generator=draw)
        tokens[:6] = 10 + 40 * label
        made.append({"input_ids": tokens, "labels": i % 2 if noisy else label})
    return made


def arguments(folder, **changes):
    options = {
        "logging_steps": 2,
        "report_to": "none",
        "label_names": ["labels"],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **options, learning_rate=1e-2, **changes)


with tempfile.TemporaryDirectory() as name:
    root, held_out = Path(name), rows(2, 64)
    general = lora_bert()
    Trainer(general, arguments(root / "g", max_steps=60, save_strategy="no"), train_dataset=rows(1, 256)).train()
    general.save_pretrained(root / "good", save_embedding_layers=False)

    # The client's own labels are noise: what the callback takes over at step 2 gets worse again.
    best = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 8, "load_best_model_at_end": True}
    args = arguments(root / "run", metric_for_best_model="loss", greater_is_better=False, **best)
    trainer = Trainer(lora_bert(), args, train_dataset=rows(7, 32, noisy=True), eval_dataset=held_out)
    trainer.add_callback(tap_hf.AdapterReplacementCallback(trainer, [str(root / "good")], margin=0.3))
    trainer.train()

    true = {}
    for step in (2, 4, 6, 8):
        model = PeftModel.from_pretrained(bert(), root / "run" / f"checkpoint-{step}")
        true[step] = Trainer(model, arguments(root / "x"), eval_dataset=held_out).evaluate()["eval_loss"]
    print("loss of what each checkpoint holds:", {step: round(loss, 4) for step, loss in true.items()})
    print("Trainer's best:", Path(trainer.state.best_model_checkpoint).name, round(trainer.state.best_metric, 4))
    chosen = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert true[chosen] == min(true.values()), "Trainer went back to a checkpoint that is not the best"
