import copy
import hashlib
import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from likelier import models
from likelier.errors import ModelError
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse
from likelier.models import (
    add_adapter,
    as_reference,
    fingerprint,
    import_gguf,
    load_model,
    load_trained,
    locate,
    pick_precision,
    save_trained,
    trainable,
)
from likelier.recipe import AdapterSettings, ModelSettings

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
CPU = torch.device("cpu")

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Single bytes and three merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    words = ["<s>", "</s>", *alphabet, *("".join(m) for m in merges)]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_model(seed: int = 0, **settings) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {**SIZES, "vocab_size": 261, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, **settings}
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_folder_loads_with_its_tokenizer(folder):
    loaded = load_model(ModelSettings(name=str(folder)), dtype=torch.float32, device=CPU)
    assert logits(loaded.model).equal(logits(tiny_model()))
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer("hello").input_ids) == "hello"
    assert (loaded.name, loaded.path) == (str(folder), str(folder))
    halves = load_model(ModelSettings(name=str(folder)), dtype=torch.bfloat16, device=CPU).model
    assert {p.dtype for p in halves.parameters()} == {torch.bfloat16}


def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path):
    only_pickle = tmp_path / "pickled"
    only_pickle.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (only_pickle / name).write_bytes((folder / name).read_bytes())
    touched = tmp_path / "unpickled"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (touched,))

    (only_pickle / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Trap()}))
    with pytest.raises(ModelError, match=r"model.name: `.*pickled` cannot be loaded .*safetensors"):
        load_model(ModelSettings(name=str(only_pickle)), dtype=torch.float32, device=CPU)
    torch.save(tiny_model().state_dict(), only_pickle / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(ModelSettings(name=str(only_pickle)), dtype=torch.float32, device=CPU)
    assert not touched.exists()


def test_code_that_comes_with_a_model_does_not_run(folder, tmp_path):
    scripted, ran = tmp_path / "scripted", tmp_path / "ran"
    scripted.mkdir()
    for path in folder.iterdir():
        (scripted / path.name).write_bytes(path.read_bytes())
    config = json.loads((scripted / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (scripted / "config.json").write_text(json.dumps(config))
    (scripted / "code.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSettings(name=str(scripted)), dtype=torch.float32, device=CPU)
    assert not ran.exists()


def test_a_model_that_is_nowhere_is_named_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"model.name: `no-one/such-model` cannot be loaded .* Give a hub name, a folder .* or a .gguf file"):
        load_model(ModelSettings(name="no-one/such-model"), dtype=torch.float32, device=CPU)
    with pytest.raises(ModelError, match=r"not a model folder \(no config.json in it\)"):
        load_model(ModelSettings(name=str(tmp_path)), dtype=torch.float32, device=CPU)
    with pytest.raises(ModelError, match="not a model folder"):
        locate("./nothing/here")
    with pytest.raises(ModelError, match="there is no such GGUF file"):
        locate(str(tmp_path / "absent.gguf"))


def test_a_damaged_model_folder_is_an_error_that_names_it(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelError, match="broken` cannot be loaded"):
        load_model(ModelSettings(name=str(broken)), dtype=torch.float32, device=CPU)
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match="broken` cannot be loaded"):
        load_model(ModelSettings(name=str(broken)), dtype=torch.float32, device=CPU)


def test_weights_that_are_missing_are_not_drawn_at_random(folder, tmp_path):
    gapped = tmp_path / "gapped"
    gapped.mkdir()
    for path in folder.iterdir():
        (gapped / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, gapped / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of its weights are missing, among them model.layers.1.mlp.up_proj.weight"):
        load_model(ModelSettings(name=str(gapped)), dtype=torch.float32, device=CPU)
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 80}
    (gapped / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gapped` cannot be loaded"):
        load_model(ModelSettings(name=str(gapped)), dtype=torch.float32, device=CPU)


def test_names_are_located(folder, tmp_path, monkeypatch):
    assert locate(str(folder)) == str(folder)
    assert locate("owner/model") == "owner/model"
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/tiny") == str(folder)
    monkeypatch.setattr(models, "import_gguf", lambda path: path.with_suffix(".imported"))
    (tmp_path / "m.gguf").touch()
    assert locate(str(tmp_path / "m.gguf")) == str(tmp_path / "m.imported")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/m.gguf") == str(tmp_path / "m.imported")


@pytest.mark.parametrize(
    "flags, wanted", [("flags : sse avx512_bf16", "bf16"), ("flags : amx_bf16 amx_tile", "bf16"), ("flags : avx2", "fp32"), ("", "fp32")]
)
def test_precision_follows_the_processor(flags, wanted, monkeypatch):
    monkeypatch.setattr(models, "_cpu_flags", lambda: flags)
    assert pick_precision("auto", CPU) == wanted
    assert pick_precision("fp32", CPU) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"


def test_the_fingerprint_is_that_of_the_numbers():
    model = tiny_model()
    name = fingerprint(model)
    assert len(name) == 64
    assert fingerprint(copy.deepcopy(model)) == name
    assert fingerprint(tiny_model(seed=1)) != name
    halves = tiny_model().bfloat16()
    assert fingerprint(halves) == fingerprint(copy.deepcopy(halves).float()) != name
    half = tiny_model().half()
    assert fingerprint(half) == fingerprint(copy.deepcopy(half).float()) not in (name, fingerprint(halves))


def test_the_fingerprint_sees_the_smallest_change_of_any_weight():
    model = tiny_model()
    name = fingerprint(model)
    for parameter in model.parameters():
        kept = parameter.data.clone()
        parameter.data.view(-1)[-1] = torch.nextafter(parameter.data.view(-1)[-1], torch.tensor(9.0))
        assert fingerprint(model) != name
        parameter.data.copy_(kept)
    assert fingerprint(model) == name


def test_the_fingerprint_sees_weights_that_changed_places_or_shape():
    swapped = tiny_model()
    layers = swapped.model.layers
    layers[0].mlp.up_proj, layers[0].mlp.gate_proj = layers[0].mlp.gate_proj, layers[0].mlp.up_proj
    assert fingerprint(swapped) != fingerprint(tiny_model())
    flat, square = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(3, 4, bias=False)
    square.weight.data.copy_(flat.weight.data.view(4, 3))
    assert fingerprint(flat) != fingerprint(square)


@pytest.mark.parametrize("tied", [False, True])
def test_the_fingerprint_is_the_same_under_an_adapter(tied):
    name = fingerprint(tiny_model(tie_word_embeddings=tied))
    model = add_adapter(tiny_model(tie_word_embeddings=tied), AdapterSettings(rank=4), seed=0)
    assert fingerprint(model) == name
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 1
    assert fingerprint(model) == name
    with torch.no_grad():
        model.get_base_model().model.layers[1].self_attn.q_proj.base_layer.weight[0, 0] += 1e-3
    assert fingerprint(model) != name


def test_a_fresh_adapter_changes_nothing_and_alone_is_trainable():
    model = add_adapter(tiny_model().bfloat16(), AdapterSettings(rank=4), seed=0)
    with torch.autocast("cpu", torch.bfloat16):  # under which adapters in fp32 meet a base in bf16
        assert logits(model).equal(logits(tiny_model().bfloat16()))
    names = trainable(model)
    assert all("lora_" in name for name in names)
    assert {p.dtype for p in names.values()} == {torch.float32}
    assert all(bool((p == 0).all()) == ("lora_B" in name) for name, p in names.items())
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # and not the head
    assert len(names) == 2 * 7 * SIZES["num_hidden_layers"]
    assert {p.shape[0] for name, p in names.items() if "lora_A" in name} == {4}


def test_the_adapter_is_scaled_by_alpha_over_rank():
    first, second = (add_adapter(tiny_model(), AdapterSettings(rank=4, alpha=alpha), seed=0) for alpha in (8.0, 16.0))
    for model in (first, second):
        for name, parameter in trainable(model).items():
            if "lora_B" in name and "layers.1.mlp.down_proj" in name:
                parameter.data.fill_(1e-3)
    layer = [m.get_base_model().model.layers[1].mlp.down_proj for m in (first, second)]
    x = torch.randn(3, 64)
    moved = [one(x) - one.base_layer(x) for one in layer]
    assert torch.allclose(2 * moved[0], moved[1], atol=1e-5)
    wanted = 2.0 * (x @ layer[0].lora_A["default"].weight.T) @ layer[0].lora_B["default"].weight.T
    assert torch.allclose(moved[0], wanted, atol=1e-5)


def test_the_seed_alone_decides_the_adapter_and_the_callers_random_numbers_stay():
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    adapters = [trainable(add_adapter(tiny_model(), AdapterSettings(rank=4), seed=seed)) for seed in (3, 3, 4)]
    assert torch.rand(3).equal(wanted)
    assert all(a.equal(b) for a, b in zip(adapters[0].values(), adapters[1].values(), strict=True))
    assert not all(a.equal(b) for a, b in zip(adapters[0].values(), adapters[2].values(), strict=True))


def test_targets_can_be_named_and_must_exist():
    model = add_adapter(tiny_model(), AdapterSettings(rank=2, targets="q_proj, v_proj"), seed=0)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)} == {"q_proj", "v_proj"}
    with pytest.raises(ModelError, match=r"adapter.targets: .*w_pack"):
        add_adapter(tiny_model(), AdapterSettings(targets="w_pack"), seed=0)


def test_as_reference_switches_the_adapter_off_and_on_again():
    model = add_adapter(tiny_model(), AdapterSettings(rank=4), seed=0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.1
    moved, names = logits(model), list(trainable(model))
    with as_reference(model):
        assert logits(model).equal(logits(tiny_model()))
    assert logits(model).equal(moved)
    assert list(trainable(model)) == names


def test_what_was_trained_is_saved_whole_and_loads_again(tmp_path):
    from peft import PeftModel

    model = add_adapter(tiny_model(), AdapterSettings(rank=4), seed=0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.1
    for card in ("# first", "# second"):
        saved = save_trained(model, tiny_tokenizer(), tmp_path / "run" / "model", card=card, notes={"likelier.dataset": "ab" * 32})
    assert saved == {"adapter_model.safetensors": hashlib.sha256((tmp_path / "run/model/adapter_model.safetensors").read_bytes()).hexdigest()}
    written = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= written
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in written)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    assert (tmp_path / "run" / "model" / "README.md").read_text() == "# second"
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "run" / "model").eval()
    assert logits(again).equal(logits(model))


@pytest.mark.parametrize("engine", ["nodes", "plain"])
@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_read_back_in_bf16_scores_as_it_did_in_training_bit_for_bit(engine, off, dora, folder, tmp_path):
    """Training holds it in fp32 under autocast, reading back holds what autocast makes of it; and rotary frequencies stay in fp32."""
    base = ModelSettings(name=str(folder))
    model = add_adapter(load_model(base, dtype=torch.bfloat16, device=CPU).model, AdapterSettings(rank=4, dora=dora), seed=0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.1 * torch.randn_like(parameter)
    save_trained(model, tiny_tokenizer(), tmp_path / "model", card="")
    read_back = load_trained(tmp_path / "model", base, dtype=torch.bfloat16, device=CPU).model
    assert {parameter.dtype for name, parameter in read_back.named_parameters() if "magnitude" not in name} == {torch.bfloat16}
    sequences = [PromptResponse(tuple(range(2, 40)), tuple(range(first, first + 20))) for first in (60, 90)]

    def scored(model):
        with torch.no_grad(), as_reference(model) if off else nullcontext():
            return torch.cat(Scorer(model, engine=engine, precision="bf16").token_logps(sequences))

    assert scored(read_back).equal(scored(model))


@pytest.mark.parametrize("tied", [False, True])
def test_full_weights_are_saved_as_safetensors(tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    save_trained(model, tiny_tokenizer(), tmp_path / "model", card="")
    loaded = load_model(ModelSettings(name=str(tmp_path / "model")), dtype=torch.float32, device=CPU)
    assert logits(loaded.model).equal(logits(model))


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, without: str = "") -> None:
    """The model in llama.cpp's format, fp32. Its query and key rows stand interleaved, head by head."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(model.config.vocab_size)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in ("<s>", "</s>") else 1 for word in words])
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["num_hidden_layers"])
    for name, tensor in model.state_dict().items():
        if name == without:
            continue
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                tensor = tensor.view(SIZES[heads], 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_becomes_a_folder_of_safetensors_once(tied, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    model = tiny_model(tie_word_embeddings=tied)
    write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), without="lm_head.weight" if tied else "")
    loaded = load_model(ModelSettings(name=str(tmp_path / "tiny.gguf")), dtype=torch.float32, device=CPU)
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    assert fingerprint(loaded.model) == fingerprint(model)
    assert loaded.tokenizer("hello").input_ids[-2:] == tiny_tokenizer()("hello").input_ids
    folder = Path(loaded.path)
    assert folder.parent == tmp_path / "cache" / "models"
    assert load_file(folder / "model.safetensors")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("it was imported before"))
    assert import_gguf(tmp_path / "tiny.gguf") == folder


def test_a_gguf_file_with_a_gap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", tiny_model(), tiny_tokenizer(), without="model.layers.0.self_attn.v_proj.weight")
    with pytest.raises(ModelError, match=r"weights are missing, among them model.layers.0.self_attn.v_proj.weight"):
        import_gguf(tmp_path / "tiny.gguf")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_no_gguf_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but only by name")
    with pytest.raises(ModelError, match=r"bad.gguf: this GGUF file cannot be imported"):
        import_gguf(tmp_path / "bad.gguf")
