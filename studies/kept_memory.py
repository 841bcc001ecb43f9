"""What it saves to keep freed memory: the figures of decision 7. Usage: python studies/kept_memory.py [DATA]

Full fine-tuning of the embedded model, 8 pairs a step, in two processes, one with the setting; they take turns step by step.
"""

import json
import resource
import subprocess
import sys

import torch
from common import embedded, in_turn, some_pairs

from likelier.allocator import keep_freed_memory
from likelier.logprobs.scorer import Scorer
from likelier.objectives import make_objective
from likelier.train.loop import add_gradients
from likelier.train.master import MasterWeights

STEPS = 6


def steps(data: str, kept: bool) -> None:
    """A step for each line that comes in; its page faults and the peak go out."""
    if kept:
        keep_freed_memory()
    loaded = embedded(torch.bfloat16)
    pairs = some_pairs(data, 8 * (STEPS + 1), loaded.tokenizer)
    scorer = Scorer(loaded.model, engine="nodes", precision="bf16")
    weights = MasterWeights(loaded.model)
    optimizer = torch.optim.AdamW(weights.parameters, lr=1e-6, fused=True)
    objective = make_objective("simpo")  # which has no reference to score first
    faults = 0
    for number, _ in enumerate(sys.stdin):
        add_gradients(scorer, weights, None, pairs[8 * number : 8 * number + 8], objective, tokens_per_batch=1024)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.publish()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"faults": usage.ru_minflt - faults, "peak_gb": usage.ru_maxrss * 1024 / 1e9}), flush=True)
        faults = usage.ru_minflt


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else "embedded:support"
    players = {
        name: subprocess.Popen([sys.executable, __file__, data, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("as it is", "kept")
    }
    told: dict[str, list[dict[str, float]]] = {name: [] for name in players}

    def turn(name: str) -> None:
        print(file=players[name].stdin, flush=True)
        told[name].append(json.loads(players[name].stdout.readline()))

    medians = in_turn({name: lambda name=name: turn(name) for name in players}, rounds=STEPS)
    for name, seconds in medians.items():
        faults = [row["faults"] for row in told[name][1:]]
        print(f"{name:9} {seconds:.2f} s a step, {min(faults):,} to {max(faults):,} page faults, peak {told[name][-1]['peak_gb']:.2f} GB")


if __name__ == "__main__":
    if sys.argv[2:]:
        steps(sys.argv[1], kept=sys.argv[2] == "kept")
    else:
        main()
