"""`likelier export`: what others load is the run's model, or nothing is left behind."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from likelier import export as module
from likelier.card import model_card
from likelier.cli import main
from likelier.errors import Refused, RunError
from likelier.export import TOLERANCE, export_run
from likelier.hashing import file_hash
from likelier.model_files import EMBEDDED_ON_HUB, hub_name
from likelier.recipe import load_recipe
from likelier.rundir import RunDir, read_json, write_json
from likelier.train.session import train_recipe
from likelier.verify import verify
from tests.conftest import CHATML, built_model, built_tokenizer
from tests.report.made_up import made_up_evaluation
from tests.train.conftest import changed, model_folder, recipe  # noqa: F401  (fixtures)

IDS = torch.arange(3, 60)[None]

ADAPTERS = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True),
    "rslora": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True),
    "head": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
    "embedding": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def finished():
    """Runs that were carried out already, by their settings."""
    return {}


@pytest.fixture
def make_run(recipe, finished, tmp_path):  # noqa: F811
    """A short run of the test's own, which may be a copy of one."""

    def make(method="lora", **sections) -> RunDir:
        asked = json.dumps([method, sections], sort_keys=True)
        if asked not in finished:
            short = {"train": {"method": method, "max_steps": 2, **sections.pop("train", {})}, "out": str(tmp_path / f"made-{method}")}
            finished[asked] = train_recipe(changed(recipe, **short, **sections)).path
        return RunDir(shutil.copytree(finished[asked], tmp_path / f"{method}-run"))

    return make


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory):
    """A model whose head is its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    config = LlamaConfig(**{**built_model().config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    built_tokenizer().save_pretrained(folder)
    return folder


def put_adapter(run: RunDir, base: Path, config: LoraConfig) -> None:
    """Give the run another adapter, of large random numbers, as PEFT itself makes and saves it."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    shutil.rmtree(run.model)
    model.save_pretrained(run.model, save_embedding_layers=False)
    built_tokenizer().save_pretrained(run.model)
    saved = {"adapter_model.safetensors": file_hash(run.model / "adapter_model.safetensors")}
    write_json(run.manifest, run.read_manifest() | {"saved": saved})


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


def beside_its_base(folder: Path, base: Path) -> torch.Tensor:
    """What the unmerged adapter says, by PEFT alone."""
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder))


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_a_merged_adapter_is_the_runs_model_in_plain_transformers(kind, make_run, model_folder, tmp_path):  # noqa: F811
    run = make_run()
    put_adapter(run, model_folder, ADAPTERS[kind])
    lines = []
    made = export_run(run, tmp_path / "out", say=lines.append)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = beside_its_base(run.model, model_folder)
    assert torch.allclose(logits(exported), wanted, atol=1e-4)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(model_folder)), wanted, atol=0.1)
    assert 0 < made["comparison"]["steps"]["merged"]["largest"] <= TOLERANCE
    assert made["comparison"]["steps"]["loaded again"]["largest"] <= TOLERANCE
    assert made["comparison"]["replies"] == 16
    assert [line.split(":")[0] for line in lines] == ["Merged", "Loaded again", "Model in fp32"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_are_merged_in_fp32_into_what_the_files_hold_and_rounded_once(make_run, model_folder, tmp_path):  # noqa: F811
    """The run itself held its base in bf16, which the merged weights must not have gone through."""
    run = make_run(train={"precision": "bf16"})
    put_adapter(run, model_folder, ADAPTERS["lora"])
    made = export_run(run, tmp_path / "out")
    base, adapter, exported = (load_file(next(folder.glob("*.safetensors"))) for folder in (model_folder, run.model, tmp_path / "out"))
    name = "model.layers.1.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    wanted = (base[f"{name}.weight"] + 2.0 * b @ a).bfloat16()
    assert exported[f"{name}.weight"].equal(wanted)
    assert not wanted.equal((base[f"{name}.weight"].bfloat16().float() + 2.0 * b @ a).bfloat16())
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    rounding = made["comparison"]["steps"]["rounded to bf16"]
    assert TOLERANCE < rounding["largest"] == pytest.approx(made["comparison"]["whole"]["largest"], abs=1e-4)
    assert 0 < rounding["mean"] < rounding["largest"]
    assert f"{made['comparison']['whole']['largest']:.1e} at most" in (tmp_path / "out" / "README.md").read_text()


def tied_run(make_run, tied_folder, kind):
    run = make_run(model={"name": str(tied_folder)})
    put_adapter(run, tied_folder, ADAPTERS[kind])
    return run


@pytest.mark.parametrize("kind, tied", [("head", False), ("embedding", False), ("lora", True)])
def test_head_and_embedding_that_were_one_come_apart_only_if_the_adapter_moves_one(kind, tied, make_run, tied_folder, tmp_path):
    run = tied_run(make_run, tied_folder, kind)
    export_run(run, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(exported), beside_its_base(run.model, tied_folder), atol=1e-4)
    assert exported.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied


@pytest.mark.parametrize("kind", ["head", "embedding"])
def test_what_peft_alone_would_merge_is_refused_and_nothing_is_left(kind, make_run, tied_folder, tmp_path, monkeypatch):
    """It moves head and embedding together."""
    run = tied_run(make_run, tied_folder, kind)
    monkeypatch.setattr(module, "merge_adapter", lambda model: model.merge_and_unload())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refused, match=r"is not the run's. Merged, its log-probabilities differ by .* \(tolerance 1e-04\) on 16 replies"):
        export_run(run, tmp_path / "new" / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "new"])
    assert not list((tmp_path / "new").iterdir())


def test_a_run_that_adapts_the_head_of_a_tied_model_saves_no_base_weights_and_is_exported(make_run, tied_folder, tmp_path):
    run = make_run(model={"name": str(tied_folder)}, adapter={"targets": "v_proj,lm_head"}, train={"learning_rate": 0.02})
    assert all(".lora_" in name for name in load_file(run.model / "adapter_model.safetensors"))
    export_run(run, tmp_path / "out")
    wanted = beside_its_base(run.model, tied_folder)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted, atol=1e-4)


@pytest.mark.parametrize(
    "trained, precision, wanted", [("fp32", None, "fp32"), ("fp32", "bf16", "bf16"), ("bf16", None, "bf16"), ("bf16", "fp32", "fp32")]
)
def test_all_weights_are_copied_or_retyped(trained, precision, wanted, make_run, tmp_path):
    run = make_run("full", train={"precision": trained, "learning_rate": 1e-3})
    made = export_run(run, tmp_path / "out", precision=precision)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    before, after = load_file(run.model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].equal(before[name].to(dtype)) for name in before)
    assert "merged" not in made["comparison"]["steps"]
    assert made["comparison"]["steps"]["loaded again"]["largest"] <= 1e-6


def test_an_adapter_loads_in_plain_peft_on_the_base_that_its_config_names(make_run, model_folder, tmp_path):  # noqa: F811
    run = make_run()
    put_adapter(run, model_folder, ADAPTERS["dora"])
    config = run.model / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": "/somebodys/cache"})
    made = export_run(run, tmp_path / "out", adapter=True)
    said = read_json(tmp_path / "out" / "adapter_config.json")
    assert said["base_model_name_or_path"] == str(model_folder)
    assert said == read_json(config) | {"base_model_name_or_path": str(model_folder)}
    assert made["files"]["adapter_model.safetensors"] == file_hash(run.model / "adapter_model.safetensors")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(said["base_model_name_or_path"]), tmp_path / "out")
    assert logits(plain).equal(beside_its_base(run.model, model_folder))
    assert made["comparison"]["whole"]["largest"] == 0


def test_what_training_saves_names_the_base_as_others_do(make_run, model_folder):  # noqa: F811
    assert read_json(make_run().model / "adapter_config.json")["base_model_name_or_path"] == str(model_folder)
    assert hub_name("embedded") == EMBEDDED_ON_HUB
    assert hub_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert [hub_name(name) for name in ("./here", "/there", "model.gguf", str(model_folder))] == [None] * 4


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_says_how_to_load_what_changed_and_from_what(adapter, make_run, model_folder, tmp_path, capsys):  # noqa: F811
    import numpy as np

    run = make_run()
    write_json(run.eval, made_up_evaluation(np.random.default_rng(0)))
    export_run(run, tmp_path / "out", adapter=adapter)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preference-tuning", "dpo", "likelier"],
    }
    manifest = run.read_manifest()
    assert all(name in card.text for name in (manifest["data"]["train"]["id"], manifest["data"]["eval"]["id"], manifest["recipe"]))
    assert "## What changed" in card.text
    assert re.search(r"\| Replies that apologise \| 80 items \| [\d.]+% \([\d.]+ to [\d.]+\) \| ", card.text)
    assert "| Accuracy | " in card.text
    assert "| pairs.jsonl |" in card.text
    assert "/pairs.jsonl" not in card.text
    [code] = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    code = code.replace("path/to/this/folder", str(tmp_path / "out")).replace("path/to/the/base", str(model_folder))
    capsys.readouterr()
    exec(code.replace("max_new_tokens=64", "max_new_tokens=2"), {})
    assert "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n" in capsys.readouterr().out


def test_front_matter_names_what_is_of_the_hub_and_guesses_nothing(make_run):
    run = make_run()
    settings = changed(
        load_recipe(run.recipe), model={"name": "Qwen/Qwen3-0.6B", "revision": "abc"}, data={"train": ["hf:some/pairs:train", "mine.jsonl"]}
    )
    card = ModelCard(model_card(settings, run.read_manifest(), adapter=True))
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert card.data.datasets == ["some/pairs"]
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert 'AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", revision="abc")' in card.text
    assert card.data.license is None
    of_file = ModelCard(model_card(changed(settings, model={"name": "/mine/tuned.gguf"}), run.read_manifest(), adapter=False))
    assert of_file.data.base_model is None
    assert "# tuned.gguf, tuned on preferences" in of_file.text
    assert "weights may be quantised" in of_file.text
    assert "quantised" not in card.text


def test_the_tokenizer_carries_the_template_and_generation_ends_where_replies_did(make_run, model_folder, tmp_path):  # noqa: F811
    template = tmp_path / "other.jinja"
    template.write_text(CHATML.replace("<|im_end|>\n", "<pad>\n"))
    run = make_run(model={"chat_template": str(template)})
    export_run(run, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    wanted = "<|im_start|>user\nHi<pad>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False) == wanted
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [2, 0]
    for file in (tmp_path / "out").iterdir():
        assert file.suffix == ".safetensors" or str(model_folder) not in file.read_text()
    template.write_text(CHATML)
    with pytest.raises(RunError, match="tokenizer or the chat template is not that of the run"):
        export_run(run, tmp_path / "again")


def test_plain_text_stays_plain(make_run, tmp_path):
    run = make_run(model={"chat_template": "none"})
    export_run(run, tmp_path / "out")
    assert 'tokenizer("Hello."' in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_exported_is_refused_before_anything_is_written(make_run, model_folder, tmp_path, capsys):  # noqa: F811
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    run, out = make_run(model={"name": str(base)}), tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("here")
    with pytest.raises(RunError, match=r"full: something is here already"):
        export_run(run, tmp_path / "full")
    with pytest.raises(RunError, match=r"mine.txt: something is here already"):
        export_run(run, tmp_path / "full" / "mine.txt")
    with pytest.raises(RunError, match="lies in the run's own folder"):
        export_run(run, run.path / "model" / "exported")
    with pytest.raises(RunError, match="exported as it was trained"):
        export_run(run, out, adapter=True, precision="bf16")
    with pytest.raises(RunError, match="not a run directory"):
        export_run(RunDir(tmp_path), out)
    manifest = run.read_manifest()
    write_json(run.manifest, manifest | {"outcome": None})
    assert main(["export", str(run.path), str(out)]) == 2
    assert "this run has not ended" in capsys.readouterr().err
    write_json(run.manifest, manifest | {"saved": {"adapter_model.safetensors": "00" * 32}})
    with pytest.raises(RunError, match=r"adapter_model.safetensors: this is not the file that the run saved"):
        export_run(run, out)
    write_json(run.manifest, manifest)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match="no longer has the weights that this run's adapter was trained on"):
        export_run(run, out)
    assert not out.exists()
    with pytest.raises(RunError, match="tuned all weights, so it has no adapter"):
        export_run(make_run("full"), out, adapter=True)


def test_an_export_is_made_and_verified_on_the_command_line(make_run, tmp_path, capsys):
    run, out = make_run(), tmp_path / "out"
    out.mkdir()
    assert main(["export", str(run.path), str(out), "--precision", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "Rounded to bf16: " in said
    assert "nats a token at most" in said
    assert main(["verify", str(out)]) == 0
    checks = {check.what: check.verdict for check in verify(out)}
    assert set(checks.values()) == {"holds"}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
        "notes in model.safetensors",
        "model card",
    } <= checks.keys()
    for name in ("config.json", "model.safetensors"):
        content = bytearray((out / name).read_bytes())
        content[-2] ^= 1
        (out / name).write_bytes(content)
    (out / "chat_template.jinja").unlink()
    (out / "pytorch_model.bin").write_bytes(b"")
    (out / "README.md").write_text("# Mine")
    assert main(["verify", str(out)]) == 1
    wrong = {check.what for check in verify(out) if check.verdict == "differs"}
    assert wrong == {"config.json", "model.safetensors", "chat_template.jinja", "pytorch_model.bin", "model card"}
    (out / "export.json").write_text("{}")
    with pytest.raises(RunError, match=r"export.json: this is not what an export writes \(KeyError: 'files'\)"):
        verify(out)


def test_numbers_that_are_none_are_refused(make_run, tmp_path, monkeypatch):
    merge = module.merge_adapter

    def broken(model):
        merged = merge(model)
        merged.lm_head.weight.data[5] = math.nan
        return merged

    monkeypatch.setattr(module, "merge_adapter", broken)
    with pytest.raises(Refused, match="differ by nan nats"):
        export_run(make_run(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
