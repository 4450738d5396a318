"""GSM8K in three parts, and what trained models make of its reasoning paths and answers.

FEDQUILT_DATA=/path/to/data python experiments/lada/gsm8k.py split
FEDQUILT_DATA=/path/to/data python experiments/lada/gsm8k.py score RUN [RUN ...]
FEDQUILT_DATA=/path/to/data python experiments/lada/gsm8k.py solve

``split`` writes ``gsm8k/{public,server,clients}.jsonl``, parts of the training set without a problem in common.
``score`` prints, for each group and the server of a run folder, the negative log-likelihood of the human reasoning path
and of the final answer behind it on held-out problems, in nats a token, without and with the adapter. ``solve`` prints
how many of the first public questions the server of ``real.toml`` solves before any training, as plain text and by its
chat template, if its paths are cut off after some tokens. The models are those of ``FEDQUILT_MODELS``, or of the hub.
"""

import json
import os
import sys
import tomllib
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedquilt.config.load import parse
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.distill.verdicts import verdicts
from fedquilt.experiment import build, export

HELD_OUT = 32
ASKED = 8
CUTS = (112, 200, 300)
PROMPT = "Question: {question}\nAnswer: "


def problems(file: str) -> list[dict[str, str]]:
    lines = (Path(os.environ["FEDQUILT_DATA"]) / "gsm8k" / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def split() -> None:
    rows = problems("train.jsonl")
    drawn = Rng(0).child("experiments", "lada").numpy().permutation(len(rows))
    ends = {"public": 2000, "server": 4000, "clients": len(rows)}
    first = 0
    for name, end in ends.items():
        lines = [json.dumps(rows[number]) for number in sorted(drawn[first:end])]
        path = Path(os.environ["FEDQUILT_DATA"]) / "gsm8k" / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        first = end


@torch.no_grad()
def likelihoods(model: torch.nn.Module, tokenizer: AutoTokenizer, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Nats a token of the path, and of the answer: the line that begins with ``####``, and the end token."""
    nats = torch.zeros(2, dtype=torch.float64)
    tokens = torch.zeros(2)
    for row in rows:
        prompt = PROMPT.format(question=row["question"])
        text = prompt + row["answer"]
        read = tokenizer(text, return_offsets_mapping=True, add_special_tokens=True)
        ids = torch.tensor([*read["input_ids"], tokenizer.eos_token_id])
        starts = torch.tensor([start for start, _ in read["offset_mapping"]] + [len(text)])
        losses = -model(ids[None]).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        answer = starts[1:] >= text.rindex("####")
        path = (starts[1:] >= len(prompt)) & ~answer
        for part, own in enumerate((path, answer)):
            nats[part] += losses[own].double().sum()
            tokens[part] += own.sum()
    path_nats, answer_nats = (nats / tokens).tolist()
    return path_nats, answer_nats


def score(run: Path) -> None:
    rows = problems("test.jsonl")[-HELD_OUT:]
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    scratch = run / "exported"
    for group in [*(own["label"] for own in config["groups"]), None]:
        label = group or "server"
        folder = export(run, scratch / label, group=group, server=group is None)
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        local = Path(os.environ.get("FEDQUILT_MODELS", "")) / name
        where = str(local) if local.is_dir() else name
        tokenizer = AutoTokenizer.from_pretrained(where)
        base = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16)
        before = likelihoods(base, tokenizer, rows)
        after = likelihoods(PeftModel.from_pretrained(base, folder), tokenizer, rows)
        figures = [f"{value:.3f}" for pair in zip(before, after, strict=True) for value in pair]
        print(f"| {run.name} | {label} | {' | '.join(figures)} |", flush=True)


def solve() -> None:
    raw = tomllib.loads(Path(__file__).with_name("real.toml").read_text(encoding="utf-8"))
    raw = {key: value for key, value in raw.items() if key not in ("groups", "compare", "seeds")}
    model = raw["server"]["model"]  # a client of the same model, so that no other one is loaded
    alone = {
        "model": model,
        "partition": {**raw["partition"], "num_clients": 1},
        "clients": {"shares": "1", "budgets": [24]},
        "method": {"name": "lada", "direction": "none"},
    }
    print(f"| the first {ASKED} public questions | {' | '.join(f'{cut} tokens' for cut in CUTS)} |\n|---|---|---|---|")
    for chat, prompt in ((False, PROMPT), (True, "{question}")):
        data = {**raw["server"]["data"], "prompt": prompt}
        server = build(
            parse({**raw, **alone, "server": {**raw["server"], "data": data, "chat": chat}})
        ).federation.server
        assert server is not None
        texts = list(server.questions.texts[:ASKED])
        paths = server.worker.complete(Order({}, rng=Rng(0)), None, texts, new_tokens=CUTS[-1])
        local = Path(os.environ.get("FEDQUILT_MODELS", "")) / model["name"]
        tokenizer = AutoTokenizer.from_pretrained(str(local) if local.is_dir() else model["name"])
        ids = [tokenizer(path, add_special_tokens=False)["input_ids"] for path in paths]
        solved = [
            verdicts(server.questions, range(ASKED), [tokenizer.decode(own[:cut]) for own in ids]) for cut in CUTS
        ]
        print(
            f"| {'chat template' if chat else 'plain'} | {' | '.join(str(int(one.sum())) for one in solved)} |",
            flush=True,
        )


if __name__ == "__main__":
    command, *folders = sys.argv[1:]
    if command == "split":
        split()
    elif command == "solve":
        solve()
    else:
        print("| run | model | path before | path after | answer before | answer after |\n|---|---|---|---|---|---|")
        for folder in folders:
            score(Path(folder))
