import json
import pickle
import sys

import pytest
import torch
import transformers

from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.data.table import Table
from fedquilt.models import locate as source_module
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source, find_source
from fedquilt.models.weights_digest import digest

IMAGES, SENTENCES, CAUSAL = "image-classification", "sequence-classification", "causal-lm"
TINY = [
    ("vit", IMAGES, "vit-2x32", "vit.layers", ("q_proj", "v_proj"), ("classifier.weight", "classifier.bias")),
    (
        "bert",
        SENTENCES,
        "bert-2x32",
        "bert.encoder.layer",
        ("query", "value"),
        ("classifier.weight", "classifier.bias"),
    ),
    (
        "distilbert",
        SENTENCES,
        "distilbert-2x32",
        "distilbert.transformer.layer",
        ("q_lin", "v_lin"),
        ("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"),
    ),
    ("llama", SENTENCES, "llama-2x32", "model.layers", ("q_proj", "v_proj"), ("score.weight",)),
    ("gemma", CAUSAL, "gemma-2x32", "model.layers", ("q_proj", "v_proj"), ()),
    ("gemma2", CAUSAL, "gemma2-2x32", "model.layers", ("q_proj", "v_proj"), ()),
    ("gemma3", CAUSAL, "gemma3_text-2x32", "model.layers", ("q_proj", "v_proj"), ()),
    ("qwen", CAUSAL, "qwen2-2x32", "model.layers", ("q_proj", "v_proj"), ()),
    ("qwen3", CAUSAL, "qwen3-2x32", "model.layers", ("q_proj", "v_proj"), ()),
    ("gpt2", CAUSAL, "gpt2-2x32", "transformer.h", ("c_attn",), ()),
]


def load(name, task=SENTENCES, num_classes=3, seed=0, **options):
    return load_model(str(name), task, num_classes=None if task == CAUSAL else num_classes, rng=Rng(seed), **options)


def rows(task):
    if task == IMAGES:
        return Table("image", torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), torch.arange(3), ("a", "b", "c"))
    return Table("text", ["one", "two and more", ""], torch.arange(3), ("a", "b", "c"))


@pytest.mark.parametrize(("kind", "task", "architecture", "path", "targets", "head"), TINY)
def test_a_tiny_model_is_whole_frozen_and_feeds_itself(kind, task, architecture, path, targets, head):
    found = load(f"tiny:{kind}", task)
    assert (found.architecture, found.blocks.path, found.targets, found.head) == (architecture, path, targets, head)
    assert found.fresh_head is bool(head)
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    logits = found.model(**found.prepare(found.encode(rows(task)))).logits
    assert logits.shape[0] == 3
    assert logits.shape[-1] == (260 if task == CAUSAL else 3)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize(("kind", "task"), [(kind, task) for kind, task, *_ in TINY])
def test_the_seed_decides_every_weight_and_torchs_own_generator_is_left_alone(kind, task):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load(f"tiny:{kind}", task, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert load(f"tiny:{kind}", task, seed=1).digest == first.digest
    assert load(f"tiny:{kind}", task, seed=2).digest != first.digest


def test_the_digest_follows_every_bit_names_and_shapes():
    found = load("tiny:vit", IMAGES)
    with torch.no_grad():
        found.model.vit.layernorm.bias[0] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0))
    assert digest(found.model) != found.digest
    assert len(found.digest) == 64


def test_a_saved_folder_loads_with_its_own_head(tmp_path):
    made = load("tiny:vit", IMAGES)
    made.model.save_pretrained(tmp_path)
    found = load(tmp_path, IMAGES, seed=9)
    assert not found.fresh_head
    assert found.digest == made.digest
    assert load(tmp_path, IMAGES, num_classes=None).digest == made.digest


def test_a_head_of_another_number_of_classes_is_drawn_from_the_seed(tmp_path):
    load("tiny:vit", IMAGES).model.save_pretrained(tmp_path)
    kept = load(tmp_path, IMAGES).model.state_dict()
    found = load(tmp_path, IMAGES, num_classes=5, seed=1)
    assert found.fresh_head
    assert found.model.classifier.weight.shape == (5, 32)
    assert float(found.model.classifier.bias.abs().sum()) == 0
    assert float(found.model.classifier.weight.std()) == pytest.approx(0.02, rel=0.3)
    for name, value in found.model.state_dict().items():
        assert name in found.head or torch.equal(value, kept[name])
    assert load(tmp_path, IMAGES, num_classes=5, seed=1).digest == found.digest
    assert load(tmp_path, IMAGES, num_classes=5, seed=2).digest != found.digest


def save_text(folder, model, kind="bert"):
    model.save_pretrained(folder)
    config = config_from({"model_type": kind})
    read_tokenizer(Source("tiny", values={}), config, {}).save_pretrained(folder)


def test_a_bare_encoder_gets_a_fresh_head(tmp_path):
    made = load("tiny:bert").model
    save_text(tmp_path, made.bert)
    found = load(tmp_path, num_classes=2, seed=1)
    assert found.fresh_head
    assert found.head == ("classifier.weight", "classifier.bias")
    body = found.model.bert.state_dict()
    assert all(torch.equal(body[name], value) for name, value in made.bert.state_dict().items())
    assert load(tmp_path, num_classes=2, seed=1).digest == found.digest
    assert found.model(**found.prepare(found.encode(rows(SENTENCES)))).logits.shape == (3, 2)


def test_a_pooler_that_the_weights_lack_belongs_to_the_fresh_head(tmp_path):
    made = load("tiny:bert").model
    made.bert.pooler = None
    save_text(tmp_path, made.bert)
    found = load(tmp_path)
    assert set(found.head) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert load(tmp_path).digest == found.digest


def test_a_causal_folder_loads_and_a_tokenizer_without_padding_pads_with_the_end(tmp_path):
    made = load("tiny:gpt2", CAUSAL)
    made.model.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(Source("tiny", values={}), config_from({"model_type": "gpt2"}), {})
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    found = load(tmp_path, CAUSAL)
    assert found.digest == made.digest
    assert found.model.config.pad_token_id == 2
    columns = found.encode(Table("text", ["ab"], None, (), targets=["c"]))
    assert columns["input_ids"][0, 5:].unique().tolist() == [2]
    assert int((columns["labels"] != -100).sum()) == 2


def test_the_built_in_model_loads_and_takes_digits():
    found = load("glyph-vit", IMAGES, num_classes=10)
    assert found.blocks.num_layers == 12
    assert found.fresh_head
    assert found.model(**found.prepare(found.encode(rows(IMAGES)))).logits.shape == (3, 10)


def test_a_package_that_brings_a_model_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "packed_model").mkdir()
    (tmp_path / "packed_model" / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    load("tiny:vit", IMAGES).model.save_pretrained(tmp_path / "packed_model" / "weights")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("package:packed_model/weights", IMAGES).architecture == "vit-2x32"
    assert "packed_model" not in sys.modules
    with pytest.raises(ModelError, match="package 'packed_model' has no folder 'model'"):
        load("package:packed_model/model", IMAGES)


def test_meta_reads_the_config_only(tmp_path):
    load("tiny:vit", IMAGES).model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name in (tmp_path, "tiny:vit", "glyph-vit"):
        found = load(name, IMAGES, num_classes=5, meta=True)
        assert all(parameter.is_meta for parameter in found.model.parameters())
        assert found.digest == ""
        assert found.model.classifier.weight.shape[0] == 5
    text = load("tiny:bert", meta=True)
    with pytest.raises(ModelError, match="on the meta device has no tokenizer"):
        text.encode(rows(SENTENCES))


def test_half_precision_weights_are_read_as_float32_unless_asked(tmp_path):
    load("tiny:vit", IMAGES).model.bfloat16().save_pretrained(tmp_path)
    assert load(tmp_path, IMAGES).model.dtype == torch.float32
    assert load(tmp_path, IMAGES, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_loading_says_nothing_and_leaves_the_loggers_as_they_were(tmp_path, capfd):
    load("tiny:vit", IMAGES).model.save_pretrained(tmp_path)
    capfd.readouterr()
    transformers.utils.logging.set_verbosity_warning()
    load(tmp_path, IMAGES, num_classes=5)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == transformers.logging.WARNING
    assert transformers.utils.logging.is_progress_bar_enabled()


class TestErrors:
    def test_names(self, tmp_path, monkeypatch):
        with pytest.raises(ModelError, match=r"model '/no/such': there is no such folder; a model is a built-in name"):
            load("/no/such")
        with pytest.raises(ModelError, match=r"'nonesuch' is not installed; .*pip install --no-deps nonesuch"):
            load("package:nonesuch/model")
        with pytest.raises(ModelError, match="'shape:gpt2' is a shape without weights and serves only to plan"):
            load("shape:gpt2", CAUSAL)
        monkeypatch.setattr(source_module, "resources", type("Nothing", (), {"files": lambda _: tmp_path}))
        with pytest.raises(ModelError, match=r"built-in model 'glyph-vit' is not in this installation"):
            find_source("glyph-vit", False, 128)

    def test_task_and_classes(self):
        with pytest.raises(
            ConfigError, match=r"model.task is 'causal-ml' \(did you mean 'causal-lm'\?\); it must be one"
        ):
            load("tiny:vit", "causal-ml")
        with pytest.raises(ModelError, match="at least 2 classes, the data has 1"):
            load("tiny:vit", IMAGES, num_classes=1)
        with pytest.raises(
            ModelError, match=r"a vit model offers no causal-lm; model.task can be: image-classification"
        ):
            load("tiny:vit", CAUSAL)

    def test_folders(self, tmp_path):
        with pytest.raises(ModelError, match=r"has no config.json; save it with save_pretrained"):
            load(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(
            ModelError, match=r"cannot be loaded: .*config\.json.*not a valid JSON file; check the files"
        ):
            load(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "wonder"}))
        with pytest.raises(ModelError, match=r"model_type 'wonder', which transformers [\d.]+ does not know; upgrade"):
            load(tmp_path)
        code = {"model_type": "wonder", "auto_map": {"AutoConfig": "code.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(code))
        with pytest.raises(ModelError, match=r"brings Python code of its own.*model\.trust_remote_code = true"):
            load(tmp_path)

    def test_weights(self, tmp_path):
        load("tiny:vit", IMAGES).model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        with pytest.raises(
            ModelError, match=r"one of its safetensors files is damaged \(.*\); download or save it again"
        ):
            load(tmp_path, IMAGES)
        weights.unlink()
        with pytest.raises(ModelError, match=r"holds no weights; fedquilt reads model\.safetensors"):
            load(tmp_path, IMAGES)
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
        with pytest.raises(ModelError, match=r"holds only pytorch_model\.bin, a pickle that can run code"):
            load(tmp_path, IMAGES)

    def test_weights_of_another_architecture(self, tmp_path):
        load("tiny:vit?layers=3", IMAGES).model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
        with pytest.raises(ModelError, match=r"weights lack 16 of the tensors that ViT.* such as 'vit\.layers\.3\."):
            load(tmp_path, IMAGES)
        (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        for num_classes in (3, 5):
            with pytest.raises(ModelError, match=r"model '.*'(: its weights lack| cannot be loaded: )"):
                load(tmp_path, IMAGES, num_classes=num_classes)

    def test_no_tokenizer(self, tmp_path):
        load("tiny:bert").model.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"no tokenizer that can be read .*put tokenizer\.json"):
            load(tmp_path)

    def test_hub_that_cannot_be_reached(self, monkeypatch):
        def unreachable(*_, **__):
            raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nSee the manual.")

        monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", unreachable)
        text = (
            r"model 'some/model' cannot be loaded: We couldn't connect to 'https://huggingface\.co' to load the files; "
        )
        with pytest.raises(ModelError, match=text + "check the name and the connection") as caught:
            load("some/model")
        assert "\n" not in str(caught.value)


# The first blocks of a model ------------------------------------------------------------


@pytest.mark.parametrize("meta", [False, True])
def test_the_first_blocks_alone_are_a_model_with_the_same_weights(meta):
    whole, cut = (load(name, IMAGES, num_classes=10, meta=meta) for name in ("glyph-vit", "glyph-vit?layers=5"))
    assert (whole.architecture, cut.architecture) == ("vit-12x64", "vit-5x64")
    assert cut.blocks.num_layers == 5
    kept = dict(whole.model.named_parameters())
    for name, parameter in cut.model.named_parameters():
        assert parameter.shape == kept[name].shape
        assert meta or name in cut.head or torch.equal(parameter, kept[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyph-vit?layers=13", r"'glyph-vit\?layers=13': the model has 12 blocks; take at most that many"),
        ("glyph-vit?layers=0", r"'\?layers=0' is not known; allowed after a name is '\?layers=N'"),
        ("glyph-vit?depth=3", r"'\?depth=3' is not known"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(name, message):
    with pytest.raises(ModelError, match=message):
        load(name, IMAGES, num_classes=10)


def test_a_language_model_writes_its_likeliest_token_whatever_its_files_advise(tmp_path):
    made = load("tiny:llama", CAUSAL)
    save_text(tmp_path, made.model, "llama")
    advice = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0, "num_beams": 2, "eos_token_id": [7, 9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(advice))
    found = load(tmp_path, CAUSAL)
    own = found.model.generation_config
    assert (own.do_sample, own.eos_token_id, own.pad_token_id) == (False, [2, 7, 9], 0)
    prompt = torch.arange(10, 20).unsqueeze(0)
    before = torch.get_rng_state()
    out = found.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5)
    ids = prompt
    for _ in range(5):
        ids = torch.cat([ids, found.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        if int(ids[0, -1]) in (2, 7, 9):
            break
    assert torch.equal(out, ids)
    assert torch.equal(before, torch.get_rng_state())
    assert load("tiny:vit", IMAGES).decode is load("tiny:bert").decode is load("tiny:llama", CAUSAL, meta=True).decode
