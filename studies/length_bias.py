"""Length by itself: of the model's own replies the longest is chosen. Does the audit say so, do replies grow, which objective resists?

    python studies/length_bias.py [FOLDER] [--page docs/studies/length-bias.md]

The embedded model replies four times to each of 80 shipped questions, at temperature 1; the longest reply that ended is chosen and the shortest
rejected. Nothing but length tells the sides apart on average. DPO, length-normalised DPO, LD-DPO and R-DPO on these pairs, and what each of them did
to the end token, at which length is decided. About 15 minutes on two quiet cores, four of them for the replies.
"""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import torch
from runs import COLORS, GREY, NOTE, Study, curve, legend, panels, table, table_of, words

from likelier.audit.findings import Verdict
from likelier.audit.run import audit
from likelier.data.chat import Encoder
from likelier.data.formats import read_pairs, write_pairs
from likelier.data.split import prompt_key
from likelier.evaluate.answers import score
from likelier.generation.sample import generate
from likelier.logprobs.examples import sequences_of
from likelier.model_files import EMBEDDED
from likelier.models import load_model
from likelier.recipe import ModelSettings
from likelier.records import Message, Pair
from likelier.rundir import RunDir
from likelier.subject import Who, find_subject

PROMPTS, REPLIES, LIMIT = 80, 4, 128
AT_LEAST = 1.2
"""The longest reply is this many times as long as the shortest, else the prompt is left out."""

RUNS = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "length-normalised-dpo": {"name": "length-normalised-dpo", "beta": 5.0},
    "ld-dpo": {"name": "ld-dpo", "beta": 0.1, "tail_weight": 0.0},
    "r-dpo": {"name": "r-dpo", "beta": 0.1, "length_penalty": 0.05},
}

TRAIN = {"max_steps": 12, "epochs": 8, "pairs_per_step": 16, "eval_every": 0}


def own_pairs(study: Study) -> list[Pair]:
    """The model's longest reply against its shortest."""
    loaded = load_model(ModelSettings(name=EMBEDDED), dtype=torch.bfloat16)
    encoder = Encoder(loaded.tokenizer, max_length=1024)
    records = list({prompt_key(record.prompt): record for record in read_pairs("embedded:facts")}.values())[:PROMPTS]
    study.say(f"writing {len(records) * REPLIES} replies")
    replies = generate(
        loaded.model,
        loaded.tokenizer,
        [encoder.encode_prompt(record.prompt) for record in records for _ in range(REPLIES)],
        end_token_id=encoder.end_token_id,
        max_new_tokens=LIMIT,
        temperature=1.0,
    )
    pairs = []
    for i, record in enumerate(records):
        ended = sorted((reply for reply in replies[i * REPLIES : (i + 1) * REPLIES] if reply.ended and reply.text.strip()), key=lambda r: r.length)
        if len(ended) > 1 and ended[-1].length >= AT_LEAST * ended[0].length:
            chosen, rejected = ((Message("assistant", reply.text.strip()),) for reply in (ended[-1], ended[0]))
            pairs.append(Pair(record.prompt, chosen, rejected, id=record.id))
    return pairs


def end_tokens(run: RunDir, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Mean log π/π_ref in nats: of the end token of chosen and of rejected replies, and of the tokens before it."""
    subject = find_subject(str(run.path))
    sequences = sequences_of(subject.encoder.encode(pairs).examples)
    both: tuple[Who, Who] = ("policy", "reference")
    policy, reference = (subject.ask(who, partial(score, sequences=sequences, tokens_per_batch=2048)) for who in both)
    changes = [policy[sequence] - reference[sequence] for sequence in sequences]
    sides = changes[::2], changes[1::2]
    ends = [fmean(float(change[-1]) for change in side) for side in sides]
    rests = [fmean(float(change[:-1].mean()) for change in side) for side in sides]
    return *(f"{value:+.2f}" for value in ends), *(f"{value:+.3f}" for value in rests)


def main() -> None:
    study = Study(__doc__, "length_bias")
    path = study.folder / "longest.jsonl"
    if not path.is_file():
        write_pairs(path, own_pairs(study))
    pairs = list(read_pairs(path))
    settings = {"data": {"train": [str(path)], "eval": [], "eval_fraction": 0.3}, "train": TRAIN, "eval": {"max_new_tokens": 192}}
    runs = {name: study.run(name, settings, {"objective": objective}) for name, objective in RUNS.items()}
    figure, (accuracy, length) = panels(2, titles=["training accuracy", "words a reply, median"], xlabel="")
    accuracy.set_xlabel("step", color=GREY, fontsize=9)
    for i, (name, run) in enumerate(runs.items()):
        curve(accuracy, run, "accuracy", label=name, color=COLORS[i])
    length.bar(range(len(runs) + 1), [words(runs["dpo"], "before"), *(words(run, "after") for run in runs.values())], color=[GREY, *COLORS])
    length.set_xticks(range(len(runs) + 1), ["before", *(name.replace("length-normalised-", "length-\nnormalised-") for name in runs)])
    legend(accuracy)
    flagged = [finding for finding in audit([str(path)]).findings if finding.verdict >= Verdict.WARN]
    study.write(
        TEXT.format(
            pairs=len(pairs),
            prompts=PROMPTS,
            replies=REPLIES,
            limit=LIMIT,
            audit=table(("verdict", "check", "what it says"), [(str(f.verdict), f.check, f.summary.replace("|", "/")) for f in flagged]),
            table=table_of(runs),
            note=NOTE.replace("16", str(sum(1 for _ in runs["dpo"].read_samples()))),
            ends=table(
                ("run", "end of chosen", "end of rejected", "a token of chosen", "a token of rejected"),
                [(name, *end_tokens(run, pairs)) for name, run in runs.items()],
            ),
            plot=study.plot("accuracy and lengths", figure),
        )
    )


TEXT = """# Length by itself

    python studies/length_bias.py --page docs/studies/length-bias.md

makes this page: SmolLM2-135M-Instruct replies {replies} times to each of {prompts} shipped questions (`facts`), at temperature 1 and up to {limit}
tokens. Of the replies that ended, the longest is chosen and the shortest rejected: {pairs} pairs in which length alone decides, three tenths of them
held out. 12 steps of 16 pairs, LoRA, two CPU cores. β is 0.1, for `length-normalised-dpo`, whose rewards are a token, 5; LD-DPO leaves out what
stands beyond the shorter reply's length; R-DPO's length penalty is 0.05 a token.

Expected: the audit flags these pairs; DPO makes replies longer; the other three, which were made against length bias, do so less.

## What the audit says

{audit}

## What the runs learned

{table}

{note}
Here replies may have 192 tokens, and accuracy is the share of held-out pairs whose longer reply has the higher reward.

Where a reply ends is decided at one token. What training did to it, over all pairs: mean log π/π_ref in nats, of the end token and of a token before
it.

{ends}

{plot}
"""


if __name__ == "__main__":
    main()
