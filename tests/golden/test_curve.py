"""The golden curve: a fixed tiny run gives the losses of curve.json. A refactor, a cache, another engine or another cut must not move them.

Where the mathematics itself is meant to change, `python tests/golden/test_curve.py` writes the curve anew; say why in the CHANGELOG.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path

import pytest

from likelier.data.chat import Encoder
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.reference import ReferenceStore, fill
from likelier.logprobs.scorer import Scorer
from likelier.objectives import make_objective
from likelier.recipe import TrainSettings
from likelier.records import Message, Pair
from likelier.rundir import RunDir
from likelier.train.loop import fit
from likelier.train.progress import Progress

CURVE = Path(__file__).with_name("curve.json")
TOPICS = ["invoice", "password", "ticket", "refund for May", "order 4711", "plan", "café bill", "e-mail"]


def pairs():
    """24 pairs on 8 prompts, two of which open alike."""
    made = []
    for number in range(24):
        topic = TOPICS[number % 8]
        prompt = (Message("system", "You are Harbor Support."), Message("user", f"Where is my {topic}?"))
        chosen = f"Your {topic} is under Settings. " + "Here are the steps: open it, reset, and wait. " * (number // 8)
        rejected = "Sorry! " * (1 + number % 3) + f"I do not know about any {topic}"
        made.append(Pair(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), id=f"pair-{number}"))
    return made


def losses(model, tokenizer, folder, *, engine="nodes", tokens_per_batch=256):
    """20 steps of 4 pairs: warm-up, cosine, clipping, three epochs and a third, full fine-tuning in fp32."""
    examples = Encoder(tokenizer, max_length=256).encode(pairs()).examples
    policy = Scorer(copy.deepcopy(model), engine=engine, precision="fp32")
    reference = ReferenceStore(folder / "reference", "tiny")
    fill(reference, policy, sequences_of(examples), tokens_per_batch=tokens_per_batch)
    settings = TrainSettings(
        method="full",
        epochs=20 * 4 / 24,
        pairs_per_step=4,
        tokens_per_batch=tokens_per_batch,
        learning_rate=1e-4,
        weight_decay=0.01,
        precision="fp32",
        seed=1,
        checkpoint_every=0,
    )
    run = RunDir(folder / "run")
    run.checkpoints.mkdir(parents=True)
    fit(policy, reference, examples, [], make_objective("dpo", beta=0.1), settings, run, Progress())
    return [row["loss"] for row in run.read_metrics("train")]


@pytest.mark.parametrize("engine, tokens_per_batch", [("nodes", 256), ("nodes", 60), ("mask", 256), ("plain", 256)])
def test_the_curve_stays(chat_model, chat_tokenizer, tmp_path, engine, tokens_per_batch):
    golden = json.loads(CURVE.read_text())["losses"]
    assert len(golden) == 20
    assert max(golden) - min(golden) > 0.1
    assert losses(chat_model, chat_tokenizer, tmp_path, engine=engine, tokens_per_batch=tokens_per_batch) == pytest.approx(golden, abs=1e-5)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import built_model, built_tokenizer

    with tempfile.TemporaryDirectory() as temporary:
        curve = losses(built_model(), built_tokenizer(), Path(temporary))
    CURVE.write_text(json.dumps({"what": "losses of tests/golden/test_curve.py, fp32", "losses": curve}, indent=1) + "\n")
