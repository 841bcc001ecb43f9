"""A run directory: the one place that knows what a run leaves behind, and where stages meet.

    recipe.yaml      the resolved recipe
    manifest.json    provenance: data ids and counts, weights fingerprint, tokenizer and template hash, versions, numerics, outcome, and the
                     hashes of the saved weight files
    metrics.jsonl    a row that names the run ("kind": "run"), then one a training step ("train"), a step that was left out because a value was not
                     finite ("skipped"), an evaluation on held-out examples ("eval"), or something in the curves that deserves a word ("symptom")
    filmstrip.jsonl  replies to a few held-out prompts as training goes on, a row a prompt and look
    checkpoints/     what a killed run resumes from
    trackers/        files of run trackers, if the recipe names any: copies of metrics.jsonl
    model/           the adapter or the weights, with tokenizer and model card
    eval.json        before and after, with intervals; eval-NAME.json the same on other data
    samples.jsonl    replies before and after, side by side, with the log-ratio of each token
    probes.jsonl     what both models replied to each prompt of each probe, and whether that counts
    report.html      all of it on one page
    .lock            while a run is at work here

manifest.json makes a run: it is written after what a resumed run needs and removed before it, so that a kill leaves a whole run or none.

Rows of metrics.jsonl (sums over responses are natural-log probabilities):
    run    step (0), dataset, held_out (ids of the training and held-out pairs), recipe, base (fingerprints)
    train  step, epoch, loss, accuracy, margin, chosen_reward, rejected_reward, chosen_logp, rejected_logp, grad_norm, learning_rate,
           pairs, tokens (unique tokens put through the model), seconds
    skipped step, loss, grad_norm (as text), ids of the examples
    eval   step, loss, accuracy, margin, chosen_reward, rejected_reward, chosen_logp, rejected_logp, pairs, prompts,
           kl (an estimate of KL(π_ref ‖ π) in nats a reply, null where not measured; eval.json has KL(π ‖ π_ref))
    symptom step (at which it was first seen), name, title, verdict ("warn" or "note"), evidence, mend
"chosen" and "rejected" are the good and the bad replies where these are judged one by one; a side that a step lacks has null. With a reference there
are chosen_log_ratio and rejected_log_ratio, too: nats by which replies became likelier than they were under the reference.

Rows of filmstrip.jsonl: step, id and prompt of the held-out record, reply, ended (by itself), length (tokens), repetition (0 to 1), apology, refusal.
Step 0 is the untrained model; its rows have `drawn`, too: ids and log-probabilities of a reply that it drew at temperature 1.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from likelier.atomic import atomic_file
from likelier.errors import RunError, disk_fault

EXPORT = "export.json"
"""The file by which an exported model says what it is: provenance, how far it is from the run's model, and the SHA-256 of each file."""

SWEEP = "sweep.json"
"""The file by which a folder of runs says which settings were tried and what came of them."""

COMPARISON, VERDICTS, COMPARISON_PAGE = "compare.json", "verdicts.jsonl", "compare.html"
"""What a folder of a comparison holds: what came of it, each verdict, and the page."""

REFERENCE_CHANGED = "reference-changed"
"""The symptom that speaks of how one start of a run ended, and of no step."""


class RunDir:
    """Paths and files of one run. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.filmstrip = self.path / "filmstrip.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.trackers = self.path / "trackers"
        self.model = self.path / "model"
        self.eval = self.path / "eval.json"
        self.samples = self.path / "samples.jsonl"
        self.probes = self.path / "probes.jsonl"
        self.report = self.path / "report.html"
        self.lock = self.path / ".lock"

    def require(self) -> "RunDir":
        """This run directory, which must exist and hold a recipe. Raises RunError."""
        if not self.recipe.is_file():
            raise RunError(f"{self.path}: this is not a run directory (no recipe.yaml in it). `likelier train RECIPE` makes one.")
        return self

    def unfinished(self) -> set[Path]:
        """What was being written here, beside its place, when a kill came: `.`, the name of the place, `.` and something."""
        places = (self.recipe, self.manifest, self.metrics, self.filmstrip, self.model, self.eval, self.samples, self.probes, self.report)
        return {path for place in places for path in self.path.glob(f".{place.name}.*")}

    def read_manifest(self) -> dict[str, Any]:
        return read_json(self.manifest)

    def read_eval(self) -> dict[str, Any] | None:
        return read_json(self.eval) if self.eval.is_file() else None

    def read_metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, all or of one kind. A last line cut short by a kill is left out."""
        return [row for row in read_jsonl(self.metrics) if kind in (None, row["kind"])]

    def append_metrics(self, row: dict[str, Any]) -> None:
        append_jsonl(self.metrics, [row])

    def cut_metrics(self, last_step: int, *, evaluated: bool = True) -> None:
        """Forget rows after `last_step`, and of that step the evaluation and what was seen in it, unless it is `evaluated`: the resumed run writes
        them again. So in the filmstrip, which keeps step 0. That the reference changed is forgotten, too: the end will tell again."""
        before = last_step if evaluated else last_step - 1
        last = {"eval": before, "symptom": before}
        kept = [row for row in self.read_metrics() if row["step"] <= last.get(row["kind"], last_step) and row.get("name") != REFERENCE_CHANGED]
        write_jsonl(self.metrics, kept)
        if self.filmstrip.is_file():
            write_jsonl(self.filmstrip, [row for row in read_jsonl(self.filmstrip) if row["step"] <= max(0, before)])

    def read_filmstrip(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.filmstrip))

    def read_samples(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.samples))


def metrics_header(manifest: dict[str, Any]) -> dict[str, Any]:
    """The first row of metrics.jsonl, which says what the others are about."""
    held_out = manifest["data"]["eval"]["id"]
    return {"kind": "run", "step": 0, **_names(manifest), "held_out": held_out}


def provenance_notes(manifest: dict[str, Any]) -> dict[str, str]:
    """What the headers of the run's weight files say: the training pairs, the recipe and the base weights that they come from."""
    return {f"likelier.{name}": value for name, value in _names(manifest).items()}


def _names(manifest: dict[str, Any]) -> dict[str, str]:
    return {"dataset": manifest["data"]["train"]["id"], "recipe": manifest["recipe"], "base": manifest["model"]["weights"]}


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises RunError naming the file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path}: this file of the run is missing; the run that writes it did not end.") from None
    except (json.JSONDecodeError, TypeError, ValueError) as problem:
        raise RunError(f"{path}: this file of the run is damaged ({problem}).") from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file that this package wrote; nothing if there is none. A line cut short by a kill ends it."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows at the end of a JSON-lines file. Raises RunError if the disk does not take them."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it a disk that is full, or fails, is a RunError that names `path`, a file or folder of a run."""
    try:
        yield
    except Exception as problem:
        if not disk_fault(problem):
            raise
        if isinstance(problem, FileExistsError | NotADirectoryError | FileNotFoundError):
            raise RunError(f"{path}: this could not be written ({problem}): no folder can be made there. Choose another path.") from problem
        raise RunError(
            f"{path}: this could not be written ({problem}). What the run wrote before, its last checkpoint too, is whole: free space on that disk, "
            "or get leave to write there, and the same command, without --fresh, goes on."
        ) from problem


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing. Raises RunError if the disk does not take it."""
    with writing(path), atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
