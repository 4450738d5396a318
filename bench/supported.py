"""Try each of transformers' architectures: load, fine-tune, export, compare with PEFT.

    python bench/supported.py --work DIR                    # all that DIR has no result for yet, then the table
    python bench/supported.py --work DIR --only bert vit    # these again
    python bench/supported.py --work DIR --seconds 300      # continue another time

For every architecture that transformers offers for a task: a tiny model with random weights is saved in a folder, and a
run of one round over two clients is built, trained and exported; PEFT then reads the folder, and its logits are
compared with those of the run's own global model. An architecture either passes all of this or is rejected when the
run is built. Anything else is a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from tiny_configs import tiny_config
from transformers.models.auto import modeling_auto as auto

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import FedquiltError
from fedquilt.core.factors import factors
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.run import run
from fedquilt.models.causality import sees_ahead
from fedquilt.models.hf_files import auto_class
from fedquilt.models.text import SPECIAL, byte_tokenizer
from fedquilt.record import Record

TABLE = Path(__file__).parents[1] / "docs" / "guide" / "supported.md"
OFFERED = {
    "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "sequence-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
NO_DEFAULT = "adapter.targets is empty and the model has no default; choose among its linear modules: "
CLASSES = ("ant", "bee", "cow")
WORDS = ("red", "blue", "sun", "sea", "tree", "dog", "cat", "moon", "ice", "fog")
TOLERANCE = 1e-4  # of the largest logit
LIMIT = 60  # seconds for one architecture
MEMORY = 8 << 30  # bytes of address space for it


@dataclass(frozen=True)
class Answer:
    """What became of an architecture: ``outcome`` is right, refused or fault, and ``reason`` tells why, or how."""

    task: str
    model_type: str
    outcome: str
    reason: str = ""


def tried(task: str, model_type: str, folder: Path) -> Answer:
    """One architecture from its config to what PEFT makes of the export; ``folder`` is an empty one to work in."""
    answer = Answer(task, model_type, "right")
    base = folder / "base"
    try:
        save_base(task, model_type, base)
    except Exception as error:
        return replace(answer, outcome="fault", reason=f"no tiny model: {told(error)}")
    config = run_file(task, base, folder)
    try:
        if NO_DEFAULT in (problem := problem_of(config)):
            targets = problem.partition(NO_DEFAULT)[2].split(", ")
            answer = replace(answer, reason=f"with `adapter.targets` set, to {', '.join(targets)}")
            config = run_file(task, base, folder, targets)
            problem = problem_of(config)
    except Exception as error:
        return replace(answer, outcome="fault", reason=f"building: {told(error)}")
    if problem:
        return replace(answer, outcome="refused", reason=problem.replace(f"model '{base}'", "the model"))
    stage = "training and exporting"
    try:
        run(config, folder / "run")
        stage = "reading with PEFT"
        faults = differences(task, config, folder)
    except Exception as error:
        faults = [f"{stage}: {told(error)}"]
    return replace(answer, outcome="fault", reason="; ".join(faults)) if faults else answer


def problem_of(config: Config) -> str:
    """Why the run is refused when it is built, or nothing."""
    try:
        build(config)
    except FedquiltError as error:
        return str(error)
    return ""


def save_base(task: str, model_type: str, base: Path) -> None:
    """A whole model with random weights, large enough to matter, with its tokenizer; a classifier of two classes."""
    torch.manual_seed(0)
    try:
        config = tiny_config(model_type)
        if task != "causal-lm":
            config.num_labels = 2
        model = auto_class(task).from_config(config)
    except Exception:
        if can_be_built(model_type, task):
            raise
        # transformers itself cannot, without a library or at all: a folder as users have one, to see what they are told
        base.mkdir()
        (base / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
        save_file({"weight": torch.zeros(1)}, base / "model.safetensors", metadata={"format": "pt"})
        return save_tokenizer(task, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "norm" not in name.lower():
                parameter.normal_(0, 0.05 if task == "image-classification" else 0.15)
            elif not parameter.any() and "bias" not in name:
                parameter.fill_(0.5)  # a scale or a gate that is closed at first lets nothing be learned behind it
    model.save_pretrained(base)
    save_tokenizer(task, base)


def can_be_built(model_type: str, task: str) -> bool:
    """Whether transformers makes a model here of its own default config."""
    try:
        with torch.device("meta"):
            auto_class(task).from_config(transformers.CONFIG_MAPPING[model_type]())
    except Exception:
        return False
    return True


def save_tokenizer(task: str, base: Path) -> None:
    """One token a byte, where the task is about text."""
    if task != "image-classification":
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=byte_tokenizer(start_and_end=task != "causal-lm"),
            **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True)),
            model_input_names=["input_ids", "attention_mask"],
        )
        tokenizer.save_pretrained(base)


def run_file(task: str, base: Path, folder: Path, targets: Sequence[str] = ()) -> Config:
    """One round, two clients, two steps; adapters in these modules, or where the model's default is."""
    source = "sklearn:digits"
    if task != "image-classification":
        source = str(folder / "rows.csv")
        rows = [
            f"{' '.join(WORDS[(row % 3 * 3 + step * row) % 10] for step in range(2 + row % 5))},{CLASSES[row % 3]}"
            for row in range(36)
        ]
        Path(source).write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    return parse(
        {
            "name": "supported",
            "rounds": 1,
            "device": "cpu",
            "threads": 1,
            "model": {"name": str(base), "task": task, "max_length": 32},
            "data": {"source": source, **({"limit": 60} if task == "image-classification" else {})},
            "partition": {"num_clients": 2},
            "clients": {"shares": "1", "budgets": [2]},
            "adapter": {"rank": 4, "alpha": 8.0, **({"targets": list(targets)} if targets else {})},
            "training": {"steps": 2, "batch_size": 4, "learning_rate": 0.02},
            "method": {"name": "fedit"},
        }
    )


def differences(task: str, config: Config, folder: Path) -> list[str]:
    """What is wrong with a finished run and its export, in words."""
    experiment = build(config)
    params, batch, ours = judged(experiment, folder / "run")
    # in a single block some may learn nothing: the last one's queries of all tokens but those that the head reads
    moved = {module.rpartition(".")[2] for module, pair in factors(params).items() if pair.B.any()}
    still = sorted({module.rpartition(".")[2] for module in factors(params)} - moved)
    found = [f"nothing is learned in {', '.join(still)}"] if still else []
    own = {} if task == "causal-lm" else {"num_labels": ours.shape[-1], "ignore_mismatched_sizes": True}
    base = auto_class(task).from_pretrained(folder / "base", **own).eval()
    base.config.use_cache = False
    with torch.no_grad():
        before = base(**batch).logits
        theirs = PeftModel.from_pretrained(base, folder / "run" / "adapters" / "global").eval()
        gap, size = float((theirs(**batch).logits - ours).abs().max()), float(ours.abs().max())
    if not gap <= TOLERANCE * max(1.0, size):
        found.append(f"PEFT's logits are off by {gap:.1e}, of at most {size:.1e}")
    if not float((before - ours).abs().max()) > TOLERANCE:
        found.append("the adapter changes no logit")
    if task == "causal-lm" and sees_ahead(theirs.get_base_model()):
        found.append("tokens see ahead")
    return found


def judged(experiment: Experiment, folder: Path) -> tuple[Any, Any, torch.Tensor]:
    """The run's global tensors, some rows as the model takes them, and the logits of these."""
    _, state, _ = Record.open(folder).load_checkpoint()
    group = experiment.groups[0]
    params = group.server.params(experiment.method.view(state, group.server.profile))
    group.bench.load(params)
    batch = {key: column[:4] for key, column in group.server.splits["test"].items()}
    with torch.no_grad():
        logits, _ = group.bench.forward(batch)
    return params, group.loaded.prepare(batch), logits


def told(error: BaseException) -> str:
    """An error in one line, with where it arose."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]} ({Path(where.filename).name}:{where.lineno})"


def tried_apart(task: str, model_type: str) -> Answer:
    """The same in a process of its own, which may take long, or end as it likes."""
    folder = Path(tempfile.mkdtemp(prefix="fedquilt-supported-"))
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        answer = tried(task, model_type, folder)
        (folder / "answer.json").write_text(json.dumps(asdict(answer)), "utf-8")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    try:
        if not (folder / "answer.json").exists():
            return Answer(task, model_type, "fault", f"the process ended with status {status} (limit {LIMIT} s)")
        return Answer(**json.loads((folder / "answer.json").read_text("utf-8")))
    finally:
        shutil.rmtree(folder)


def architectures() -> Iterator[tuple[str, str]]:
    """Every task and the model types that transformers offers for it."""
    for task, offered in OFFERED.items():
        yield from ((task, model_type) for model_type in offered)


def table(answers: Iterable[Answer]) -> str:
    """The page."""
    told = {(answer.task, answer.model_type): answer for answer in answers}
    lines = [
        "# Supported architectures",
        "",
        f"Made by `python bench/supported.py` with transformers {transformers.__version__}; do not edit. Of every",
        "architecture that transformers offers for a task, a tiny model with random weights is loaded, fine-tuned with",
        "LoRA over two clients, exported, and loaded by plain PEFT. Architectures that fail this are rejected when the",
        "run is built, before anything is trained, with the reason given here.",
    ]
    for task in OFFERED:
        mine = [answer for answer in told.values() if answer.task == task]
        right = sum(answer.outcome == "right" for answer in mine)
        causal = task == "causal-lm"
        columns = ["architecture", "loads", "trains", "exports", "PEFT equal", *(["causal"] if causal else [])]
        lines += ["", f"## {task}: {right} of {len(mine)}", "", f"| {' | '.join(columns)} |"]
        lines.append("|" + "---|" * len(columns))
        for answer in sorted(mine, key=lambda answer: answer.model_type):
            cells = [f"yes {answer.reason}".strip(), *["yes"] * (len(columns) - 2)]
            if answer.outcome != "right":
                cells = [f"{answer.outcome}: {answer.reason}".replace("|", "\\|"), *["no"] * (len(columns) - 2)]
            lines.append(f"| {answer.model_type} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_answers(path: Path) -> dict[tuple[str, str], Answer]:
    """The answers that are there already; of two for the same, the later one."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    answers = (Answer(**json.loads(line)) for line in lines)
    return {(answer.task, answer.model_type): answer for answer in answers}


def main(arguments: list[str] | None = None) -> int:
    """Tries what is wanted, writes the table once all is there; 1 if anything is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="*", help="try these model types again")
    parser.add_argument("--task", choices=OFFERED, help="only this task")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no other one after this time")
    parser.add_argument("--out", type=Path, default=TABLE)
    wanted = parser.parse_args(arguments)
    wanted.work.mkdir(parents=True, exist_ok=True)
    path, begun = wanted.work / "answers.jsonl", time.monotonic()
    answers = read_answers(path)
    warm_up()
    for task, model_type in architectures():
        known = (task, model_type) in answers
        if (known and not wanted.only) or (wanted.only and model_type not in wanted.only):
            continue
        if wanted.task not in (None, task):
            continue
        if time.monotonic() - begun > wanted.seconds:
            print("time is over; go on with the same command")
            return 1
        answer = answers[task, model_type] = tried_apart(task, model_type)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(answer)) + "\n")
        print(f"{task} {model_type}: {answer.outcome} {answer.reason}", flush=True)
    faults = [answer for answer in answers.values() if answer.outcome == "fault"]
    if answers.keys() >= set(architectures()):
        wanted.out.write_text(table(answers.values()), "utf-8")
    print(f"{len(answers)} tried, {len(faults)} faults")
    return 1 if faults else 0


def warm_up() -> None:
    """Quiet, and with everything imported that the processes to come have in common."""
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for task, model_type in (("causal-lm", "llama"), ("image-classification", "vit")):
        with tempfile.TemporaryDirectory() as folder:
            tried(task, model_type, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
