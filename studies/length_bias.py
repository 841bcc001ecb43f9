"""Length by itself: of the model's own replies the longest is chosen. Does the audit say so, do replies grow, does dividing by length help?

    python studies/length_bias.py [FOLDER] [--page docs/studies/length-bias.md]

The embedded model replies four times to each of 64 shipped support prompts, at temperature 1; the longest reply that ended is chosen and the shortest
rejected. Nothing but length tells the sides apart on average. DPO, length-normalised DPO and R-DPO on these pairs. About fifteen minutes on two quiet
cores, a third of it for the replies.
"""

import torch
from runs import COLORS, NOTE, Study, curve, legend, panels, table, table_of, words

from likelier.audit.findings import Verdict
from likelier.audit.run import audit
from likelier.data.chat import Encoder
from likelier.data.formats import read_all, write_pairs
from likelier.data.split import prompt_key
from likelier.generation.sample import generate
from likelier.model_files import EMBEDDED
from likelier.models import load_model
from likelier.recipe import ModelSettings
from likelier.records import Message, Pair

PROMPTS, REPLIES, LIMIT = 64, 4, 160
AT_LEAST = 1.2
"""The longest reply is this many times as long as the shortest, else the prompt is left out."""

RUNS = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "length-normalised-dpo": {"name": "length-normalised-dpo", "beta": 5.0},
    "r-dpo": {"name": "r-dpo", "beta": 0.1, "length_penalty": 0.05},
}

TRAIN = {"max_steps": 16, "epochs": 8, "pairs_per_step": 16, "eval_every": 0}


def own_pairs(study: Study) -> list[Pair]:
    """The model's longest reply against its shortest."""
    loaded = load_model(ModelSettings(name=EMBEDDED), dtype=torch.bfloat16)
    encoder = Encoder(loaded.tokenizer, max_length=1024)
    records = list({prompt_key(record.prompt): record for record in read_all(["embedded:support"])}.values())[:PROMPTS]
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


def main() -> None:
    study = Study(__doc__, "length_bias")
    path = study.folder / "longest.jsonl"
    if not path.is_file():
        write_pairs(path, own_pairs(study))
    settings = {"data": {"train": [str(path)]}, "train": TRAIN, "eval": {"max_new_tokens": 256}}
    runs = {name: study.run(name, settings, {"objective": objective}) for name, objective in RUNS.items()}
    figure, (margin, length) = panels(2, titles=["training accuracy", "words a reply, median of 16"], xlabel="")
    margin.set_xlabel("step")
    for i, (name, run) in enumerate(runs.items()):
        curve(margin, run, "accuracy", label=name, color=COLORS[i])
    length.bar(range(len(runs) + 1), [words(runs["dpo"], "before"), *(words(run, "after") for run in runs.values())], color=["#808080", *COLORS])
    length.set_xticks(range(len(runs) + 1), ["before", *(name.replace("length-normalised-", "length-\nnormalised-") for name in runs)])
    legend(margin)
    flagged = [finding for finding in audit([str(path)]).findings if finding.verdict >= Verdict.WARN]
    study.write(
        TEXT.format(
            pairs=len(list(read_all([str(path)]))),
            prompts=PROMPTS,
            replies=REPLIES,
            limit=LIMIT,
            audit=table(("verdict", "check", "what it says"), [(str(f.verdict), f.check, f.summary.replace("|", "/")) for f in flagged]),
            table=table_of(runs),
            note=NOTE,
            plot=study.plot("accuracy and lengths", figure),
        )
    )


TEXT = """# Length by itself

    python studies/length_bias.py --page docs/studies/length-bias.md

makes this page: SmolLM2-135M-Instruct replies {replies} times to each of {prompts} shipped support prompts, at temperature 1 and up to {limit}
tokens. Of the replies that ended, the longest is chosen and the shortest rejected: {pairs} pairs in which length alone decides. 16 steps of 16
pairs (four passes), LoRA, two CPU cores. β is 0.1, for `length-normalised-dpo`, whose rewards are a token, 5; R-DPO's length penalty is 0.05 a
token.

Expected: the audit flags these pairs; DPO makes replies longer; length-normalised DPO and R-DPO do so less.

## What the audit says

{audit}

## What the runs learned

{table}

{note} Here replies may have 256 tokens. The held-out pairs are those of support, where the shorter reply is mostly the better one.

{plot}
"""


if __name__ == "__main__":
    main()
