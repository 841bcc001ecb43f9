"""Several processes train as one does: the same gradient, the same curves, the same order of the data, whatever their number."""

import copy
import os
import random
import signal
import socket
from functools import partial
from itertools import chain, count
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from likelier.cli import main
from likelier.logprobs.scorer import DTYPES
from likelier.models import here
from likelier.rundir import RunDir
from likelier.train import session
from likelier.train.parallel import ALONE, Ranks, ranks_of_torchrun
from likelier.train.sharding import whole
from likelier.train.stop import Stop
from tests.conftest import built_model, built_tokenizer
from tests.train.children import begin, ended, hold_after_step, hold_before_naming, step_saved, wait_for
from tests.train.conftest import changed

SAME = ("kind", "step", "pairs", "learning_rate")
ALIKE = ("loss", "margin", "chosen_reward", "rejected_logp", "grad_norm")


def as_rank(rank: int, size: int, port: int, out: str, hold: Path | None, pause: int, wide: bool) -> None:
    """What torchrun does for one process; the leader keeps the gradient of its first step, and waits where it is to be killed. `wide`: in fp64."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    clip, kept = torch.nn.utils.clip_grad_norm_, Path(f"{out}.gradients")
    steps = count()

    def keep_and_clip(parameters, norm):
        if next(steps) == 0:
            gradients = {str(i): whole(parameter.grad) for i, parameter in enumerate(parameters) if parameter.grad is not None}
            Path(f"{out}.{rank}.held").write_text(str(sum(here(parameter).numel() for parameter in parameters)))
            if rank == 0:
                save_file(gradients, kept)
        return clip(parameters, norm)

    divide = session.shard

    def note_and_divide(policy, *others):
        Path(f"{out}.{rank}.loaded").write_text(str(sum(parameter.numel() for parameter in policy.model.parameters() if not parameter.is_meta)))
        divide(policy, *others)

    torch.nn.utils.clip_grad_norm_, session.shard = keep_and_clip, note_and_divide
    if wide:
        DTYPES["fp32"] = torch.float64
    if rank:
        return
    if hold:
        hold_before_naming(hold)
    hold_after_step(out, pause)


def start_ranks(recipe, size: int, *, hold: Path | None = None, pause: int = 0, wide: bool = False):
    """`likelier train` as so many ranks. The leader waits before it names a checkpoint `hold`, or after step `pause` for a file OUT.go."""
    path = Path(f"{recipe.out}.yaml")
    path.write_text(recipe.to_yaml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    befores = [partial(as_rank, rank, size, port, recipe.out, hold, pause, wide) for rank in range(size)]
    words = ["train", str(path), "--no-report"]
    return [begin(words, f"{recipe.out}.{rank}.log", before) for rank, before in enumerate(befores)]


def said(recipe, rank: int = 0) -> str:
    return Path(f"{recipe.out}.{rank}.log").read_text()


def trained(recipe, size: int, **options) -> RunDir:
    children = start_ranks(recipe, size, **options)
    codes = [ended(child) for child in children]
    assert codes == [0] * size, said(recipe, next((rank for rank, code in enumerate(codes) if code), 0))
    return RunDir(recipe.out)


def short(recipe, **settings):
    return changed(recipe, train={"precision": "fp32", "max_steps": 4, "eval_every": 2, "checkpoint_every": 1} | settings)


def gradient(run: RunDir) -> torch.Tensor:
    return torch.cat([value.flatten() for _, value in sorted(load_file(f"{run.path}.gradients").items())])


def distance(run: RunDir, truth: RunDir) -> float:
    """How far the gradient of its first step is from the true one, relative to that."""
    wanted = gradient(truth)
    assert wanted.norm() > 0
    return float((gradient(run) - wanted).norm() / wanted.norm())


def assert_as_one(run: RunDir, one: RunDir) -> None:
    """The same steps of the same data, and numbers that differ by rounding."""
    rows, truths = ([row for row in each.read_metrics() if row["kind"] in ("train", "eval")] for each in (run, one))
    assert [[row.get(name) for name in SAME] for row in rows] == [[row.get(name) for name in SAME] for row in truths]
    for row, truth in zip(rows, truths, strict=True):
        assert [row.get(name) for name in ALIKE] == [
            None if truth.get(name) is None else pytest.approx(truth[name], rel=1e-4, abs=1e-5) for name in ALIKE
        ]
    weights, wanted = (load_file(next(each.model.glob("*.safetensors"))) for each in (run, one))
    assert all((weights[name] - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6 for name in wanted)


def scored_sequences(cache: Path) -> list[bytes]:
    """The key of each value in the reference's store, as often as it was written."""
    return [key.tobytes() for path in cache.glob("reference/*/*.safetensors") for key in load_numpy(path)["keys"]]


@pytest.mark.parametrize(
    "settings, sizes",
    [
        ({"train": {"method": "lora"}}, (2, 4)),
        ({"train": {"method": "full"}}, (2,)),
        ({"objective": {"name": "kto"}}, (2,)),
        ({"objective": {"name": "aot"}}, (2,)),
        ({"train": {"method": "lora", "fsdp": True}}, (2,)),
        ({"train": {"method": "full", "fsdp": True}}, (2, 4)),
        ({"train": {"method": "full", "fsdp": True, "gradient_checkpointing": "selective"}, "objective": {"name": "kto"}}, (2,)),
    ],
    ids=["lora", "full", "kto", "aot", "fsdp-lora", "fsdp-full", "fsdp-recomputed-kto"],
)
def test_many_ranks_train_as_one(recipe, settings, sizes, tmp_path, monkeypatch):
    recipe = changed(short(recipe), **settings)
    runs = {}
    for size in (1, *sizes):
        monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / f"cache-{size}"))
        runs[size] = trained(changed(recipe, out=f"{recipe.out}-{size}"), size)
    one = runs.pop(1)
    for size, run in runs.items():
        assert distance(run, one) < 1e-5, "fp32: two cuts of one process differ as much"
        assert_as_one(run, one)
        held = [int(Path(f"{run.path}.{rank}.held").read_text()) for rank in range(size)]
        assert len({*held}) == 1 if not recipe.train.fsdp or recipe.train.method == "lora" else sum(held) == gradient(one).numel(), "parts"
        assert run.read_manifest()["reference"] == one.read_manifest()["reference"]
        if recipe.train.fsdp:
            loaded = [int(Path(f"{run.path}.{rank}.loaded").read_text()) for rank in range(size)]
            assert loaded[0] > 0 == sum(loaded[1:]), "the leader alone reads the model"
        keys = scored_sequences(tmp_path / f"cache-{size}")
        assert len(keys) == len({*keys}) == one.read_manifest()["reference"]["computed"], "each is scored by one rank"
        assert "Traceback" not in said(changed(recipe, out=str(run.path)), size - 1)


def test_tied_weights_stay_tied_in_parts(recipe, tmp_path):
    """And a model whose rows cannot be shared out evenly: the last rank has fewer, or none."""
    base = built_model()
    config = copy.deepcopy(base.config)
    config.tie_word_embeddings = True
    config.intermediate_size = 45
    with torch.random.fork_rng():
        torch.manual_seed(1)
        type(base)(config).save_pretrained(tmp_path / "tied")
    built_tokenizer().save_pretrained(tmp_path / "tied")
    recipe = changed(short(recipe, method="full", max_steps=2), model={"name": str(tmp_path / "tied")})
    one, parts = (trained(changed(recipe, out=f"{recipe.out}-{size}", train={"fsdp": size > 1}), size) for size in (1, 4))
    assert distance(parts, one) < 1e-5
    assert_as_one(parts, one)
    assert "lm_head.weight" not in load_file(next(parts.model.glob("*.safetensors")))


def test_an_adapter_is_continued_in_parts(recipe):
    first = trained(changed(short(recipe, max_steps=1), out=f"{recipe.out}-first"), 1)
    recipe = changed(short(recipe, max_steps=2), adapter={"start": str(first.model)})
    one, parts = (trained(changed(recipe, out=f"{recipe.out}-{size}", train={"fsdp": size > 1}), size) for size in (1, 2))
    assert distance(parts, one) < 1e-5
    assert_as_one(parts, one)


def test_in_wider_numbers_the_gradient_is_that_of_one_process(recipe):
    """What differs in fp32 is rounding: with a model in fp64 it is gone, but for that of the log-softmax, the masters and their sum."""
    recipe = short(recipe, method="full", max_steps=1, eval_every=0)
    runs = {size: trained(changed(recipe, out=f"{recipe.out}-{size}"), size, wide=True) for size in (1, 2, 4)}
    assert distance(runs[2], runs[1]) < 2e-7
    assert distance(runs[4], runs[1]) < 2e-7


def test_parts_in_bf16_are_trained_in_fp32(recipe):
    recipe = short(recipe, method="full", precision="bf16", max_steps=2)
    one, parts = (trained(changed(recipe, out=f"{recipe.out}-{size}", train={"fsdp": size > 1}), size) for size in (1, 2))
    losses, wanted = ([row["loss"] for row in run.read_metrics("train")] for run in (parts, one))
    assert losses == pytest.approx(wanted, rel=1e-2)
    for run in (parts, one):
        weights = load_file(next(run.model.glob("*.safetensors")))
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert (parts.model / "config.json").read_text() == (one.model / "config.json").read_text()
    assert parts.read_manifest()["model"] == one.read_manifest()["model"]
    assert parts.read_manifest()["reference"]["computed"] == 0, "the reference's numbers are those of one process, and were there"


@pytest.mark.parametrize("settings, afterwards", [({}, 4), ({"method": "full", "fsdp": True}, 4), ({"method": "full", "fsdp": True}, 1)])
def test_a_killed_rank_ends_the_run_and_another_number_of_ranks_goes_on(recipe, settings, afterwards):
    recipe = short(recipe, max_steps=6, **settings)
    one = trained(changed(recipe, out=f"{recipe.out}-whole"), 1)
    run = RunDir(recipe.out)
    leader, other = start_ranks(recipe, 2, hold=run.checkpoints / "step-000004")
    wait_for(lambda: step_saved(run) == 3, leader)
    other.kill()
    assert ended(other) == -signal.SIGKILL
    leader.kill()  # as torchrun does when one of its processes has died
    ended(leader)
    assert trained(recipe, afterwards).read_manifest()["outcome"]["steps"] == 6
    assert_as_one(run, one)


def test_what_is_asked_of_one_rank_stops_all_at_a_checkpoint(recipe):
    """The others learn of it at the end of their step; the one that was asked may be waiting for them, and hears of it after that."""
    run = RunDir(recipe.out)
    children = start_ranks(short(recipe, max_steps=8), 2, pause=3)
    wait_for(lambda: len(run.read_metrics("train")) == 3, children[0])
    os.kill(children[1].pid, signal.SIGTERM)
    Path(f"{recipe.out}.go").touch()
    assert [ended(child) for child in children] == [128 + signal.SIGTERM] * 2
    assert step_saved(run) in (3, 4)
    assert f"stopped by SIGTERM at step {step_saved(run)} of 8" in said(recipe)


# Who does what


def test_work_is_shared_out_evenly_and_each_part_once():
    draw = random.Random(0)
    items = [(n, draw.randint(1, 100)) for n in range(40)]
    shares = [Ranks(rank, 4).share(items, lambda item: item[1]) for rank in range(4)]
    assert sorted(chain.from_iterable(shares)) == items
    assert all(share == sorted(share) for share in shares), "in their order"
    loads = [sum(cost for _, cost in share) for share in shares]
    assert max(loads) - min(loads) < 10
    assert [Ranks(rank, 4).share([7], lambda item: item) for rank in range(4)] == [[7], [], [], []]


def test_one_process_needs_nobody():
    weight = torch.nn.Parameter(torch.ones(2))
    stop = Stop()
    with ranks_of_torchrun() as ranks:
        assert ranks is ALONE
        assert ranks.leads
        assert ranks.gather(3) == [3]
        ranks.add_gradients([weight])
        assert weight.grad is None
        assert not ranks.stop_together(stop)
        stop.give_up("enough")
        assert ranks.stop_together(stop)


def test_what_torchrun_would_do_many_times_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["audit", str(tmp_path / "pairs.jsonl")]) == 2
    assert "torchrun is for `likelier train` alone" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["audit", str(tmp_path / "pairs.jsonl")]) == 2
    assert "pairs.jsonl" in capsys.readouterr().err
