"""A tiny language model on disk, rows, and the run file and the Trainers of a federation that fine-tunes it."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from fedquilt.config.load import load
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

TARGETS = ["q_proj", "v_proj"]
RUN = """
seed = 5
rounds = {rounds}
name = "patched"
output = "{output}"
device = "cpu"
model = {{ name = "{model}", task = "causal-lm" }}
data = {{ source = "node" }}
partition = {{ scheme = "sites", num_clients = {clients} }}
clients = {{ budgets = ["100%"], shares = "1" }}
adapter = {{ rank = 2, alpha = 4 }}
network = {{ timeout = {timeout}, wait = {timeout} }}
defence = {{ max_norm_ratio = "off", max_weight_share = 1.0 }}
method = {{ name = "{method}" }}
"""
"""A server's run file; it says nothing of how the clients train."""


def saved_model(folder: Path, seed: int = 1) -> Path:
    """A tiny random language model with its tokenizer, as ``from_pretrained`` reads it."""
    load_model("tiny:llama?layers=2&width=16", "causal-lm", num_classes=None, rng=Rng(seed)).save(folder)
    return folder


def settings(folder: Path, model: Path, *, rounds: int = 3, clients: int = 2, method: str = "fedit", more: str = ""):
    file = folder / "run.toml"
    text = RUN.format(model=model, rounds=rounds, clients=clients, method=method, output=folder / "runs", timeout=10)
    file.write_text(text + more)
    return load(file)[0]


def rows_of(client: int, count: int = 10) -> list[dict[str, str]]:
    return [{"prompt": f"{client} plus {number} is", "completion": f" {client + number}."} for number in range(count)]


def sft_trainer(model: Path, out: Path, client: int = 0, rows: int = 10, callbacks=(), eval_rows: int = 4, **changes):
    """TRL's own trainer, as a script would make it."""
    args = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "linear"}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=SFTConfig(output_dir=str(out), bf16=False, max_length=48, **quiet, **{**args, **changes}),
        train_dataset=Dataset.from_list(rows_of(client, rows)),
        eval_dataset=Dataset.from_list(rows_of(client + 5, eval_rows)) if eval_rows else None,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[*callbacks],
    )


def plain_trainer(model: Path, out: Path, client: int = 0, rows: int = 10, **changes):
    """Transformers' own Trainer with a collator of the user's, and a model that PEFT has adapted before."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer(row["prompt"] + row["completion"])["input_ids"] for row in rows_of(client, rows)]

    def collated(batch):
        longest = max(len(one) for one in batch)
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in batch])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in batch])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    args = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "weight_decay": 0.01}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    base = AutoModelForCausalLM.from_pretrained(model)
    return Trainer(
        model=get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS)),
        args=TrainingArguments(output_dir=str(out), remove_unused_columns=False, **quiet, **{**args, **changes}),
        train_dataset=texts,
        data_collator=collated,
    )
