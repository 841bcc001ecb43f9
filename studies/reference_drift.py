"""The reference must stay where it was. What happens if it follows the policy, and is it seen?

    python studies/reference_drift.py [FOLDER] [--page docs/studies/reference-drift.md]

One run with the frozen reference, one whose reference is taken anew from the policy every five steps, and one where it is every step, as it is
where a tool keeps the reference as "the same weights" and then trains them. The check that would stop these two is blinded for them; then it is
tried: on a reference that follows, and on base weights that somebody alters in the middle of a run. About twelve minutes on two quiet cores.
"""

import shutil
from contextlib import contextmanager
from typing import Any

import torch
from runs import COLORS, GREY, NOTE, SHORT_RUN, Study, curve, legend, merged, panels, table, table_of

from likelier.errors import TrainingStopped
from likelier.logprobs.examples import sequences_of
from likelier.logprobs.reference import ReferenceValues, fill
from likelier.recipe import parse_recipe
from likelier.train import session
from likelier.train.order import ExampleOrder
from likelier.train.progress import Progress
from likelier.train.session import Prepared, train_recipe

LAST = merged(SHORT_RUN, {"train": {"eval_every": 0}})
"""One evaluation, at the end: else a run would keep the weights that are best by a reference which moves."""


class Following(ReferenceValues):
    """Values of a reference that is taken anew from the policy after every so many steps: of what is looked at until it is taken again."""

    def __init__(self, prepared: Prepared, every: int, *, blind: bool) -> None:
        super().__init__()
        self.damaged: list[Any] = []
        self.prepared, self.every, self.blind = prepared, every, blind

    def digest(self, sequences: Any) -> str:
        return "always the same" if self.blind else super().digest(sequences)

    def follow(self, step: int) -> None:
        if step % self.every == 0:
            prepared, settings, fresh = self.prepared, self.prepared.recipe.train, ReferenceValues()
            order = ExampleOrder(prepared.train.examples, settings)
            until = min(step + self.every, order.steps)
            examples = [example for each in range(step, until) for example in order.step(each)]
            if until == order.steps:  # the only evaluation
                examples += prepared.held_out.examples
            fill(fresh, prepared.policy, sequences_of(examples), tokens_per_batch=settings.tokens_per_batch)
            self._values |= fresh._values


class AfterEachStep(Progress):
    """Calls `act(step)` after each training step."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def logged(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self.act(row["step"])


@contextmanager
def following(every: int, *, blind: bool) -> Any:
    """Within it a run's reference follows its policy. Yields the hook to train with."""
    opened, stores = session.open_store, []

    def open_following(prepared: Prepared, show: Progress) -> Any:
        stores.append(Following(prepared, every, blind=blind))
        return stores[-1]

    session.open_store = open_following
    try:
        yield AfterEachStep(lambda step: stores[-1].follow(step))
    finally:
        session.open_store = opened


def train_following(study: Study, name: str, every: int) -> None:
    """Train the run called `name` unless it is there."""
    recipe = parse_recipe(merged(LAST, {"out": str(study.folder / name)}), where="studies/reference_drift.py")
    manifest = study.folder / name / "manifest.json"
    if not manifest.is_file() or '"outcome": null' in manifest.read_text():
        with following(every, blind=True) as hook:
            train_recipe(recipe, show=hook, fresh=True)


def refused(study: Study, name: str, show: Progress) -> str:
    """What a run of six steps ends with, which the check is to stop."""
    recipe = parse_recipe(merged(LAST, {"train": {"max_steps": 6}, "out": str(study.folder / name)}), where="studies/reference_drift.py")
    shutil.rmtree(study.folder / name, ignore_errors=True)
    try:
        train_recipe(recipe, show=show)
    except TrainingStopped as stopped:
        return str(stopped).split(".")[0]
    return "nothing was noticed"


def tamper(study: Study) -> str:
    """Alter one number of the base under the adapter after the third step."""
    taken: list[Prepared] = []
    prepare = session.prepare

    def preparing(*arguments: Any) -> Prepared:
        taken.append(prepare(*arguments))
        return taken[-1]

    @torch.no_grad()
    def alter(step: int) -> None:
        if step == 3:
            next(p for name, p in taken[-1].policy.model.named_parameters() if "base_layer" in name).view(-1)[0] += 0.01

    session.prepare = preparing
    try:
        return refused(study, "tampered", AfterEachStep(alter))
    finally:
        session.prepare = prepare


def main() -> None:
    study = Study(__doc__, "reference_drift")
    runs = {"frozen": study.run("frozen", LAST)}
    for name, every in (("taken anew every 5 steps", 5), ("taken anew every step", 1)):
        train_following(study, f"every-{every}", every)
        runs[name] = study.run(f"every-{every}", LAST)
    with following(3, blind=False) as hook:
        seen = [("a reference that follows the policy", refused(study, "guarded", hook))]
    seen.append(("one number of the base altered by 0.01 after step 3", tamper(study)))
    figure, (loss, margin, norm) = panels(3, titles=["loss", "margin, as the run sees it", "gradient norm"])
    for i, (name, run) in enumerate(runs.items()):
        for axes, field in ((loss, "loss"), (margin, "margin"), (norm, "grad_norm")):
            curve(axes, run, field, label=name, color=COLORS[i])
    loss.axhline(0.6931, color=GREY, linestyle="--", linewidth=1)
    legend(margin)
    study.write(
        TEXT.format(table=table_of(runs), note=NOTE, plot=study.plot("curves", figure), seen=table(("what was done", "how the run ended"), seen))
    )
    assert all("reference changed" in how for _, how in seen), "the check must see both"


TEXT = """# A reference that drifts

    python studies/reference_drift.py --page docs/studies/reference-drift.md

makes this page: 15 steps of 16 of the 230 shipped support pairs, LoRA, DPO with β 0.3, SmolLM2-135M-Instruct, two CPU cores. Accuracy, margin and
KL in the table are measured afterwards, against the model before training, whatever the run took as its reference.

Expected: where the reference follows at every step the margin is 0 at every step and the loss log 2 (0.693): nothing in the curves says that the
model moves. But it does, and without a tie: the push never gets weaker, so that the margin against the true reference and the KL grow beyond the
frozen run's.

{table}

{note}

The check at the end of a run (values and weights of the reference are hashed before and after), without the blindfold:

{seen}

{plot}
"""


if __name__ == "__main__":
    main()
