"""The rules applied row by row, each symptom told once, at the row that first shows it."""

from collections.abc import Iterable
from dataclasses import replace

from likelier.recipe import Recipe
from likelier.train.watch.history import History, Row, Setup, Symptom
from likelier.train.watch.rules import RULES


class Diagnosis:
    """Follows a run's rows. What it finds depends on these and on the settings alone, so that it is the same live, resumed and afterwards."""

    def __init__(self, setup: Setup) -> None:
        self.history = History(setup)
        self._known: set[str] = set()

    def after(self, row: Row) -> list[Symptom]:
        """What `row` shows for the first time."""
        if row["kind"] not in ("train", "eval", "skipped"):
            return []
        self.history.add(row)
        found = [replace(symptom, step=row["step"]) for rule in RULES for symptom in rule(self.history) if symptom.name not in self._known]
        self._known |= {symptom.name for symptom in found}
        return found

    def catch_up(self, rows: Iterable[Row], filmstrip: Iterable[Row]) -> list[Symptom]:
        """Take in what a run has written already. Returns what it shows and no row of kind "symptom" says."""
        self.history.add_film([*filmstrip])
        rows = [*rows]
        told = {row["name"] for row in rows if row["kind"] == "symptom"}
        return [symptom for row in rows for symptom in self.after(row) if symptom.name not in told]


def diagnose(rows: Iterable[Row], filmstrip: Iterable[Row], recipe: Recipe) -> list[Symptom]:
    """All symptoms of a run, by the step at which each was first seen: those that its rows tell, and those that the rules see in them."""
    rows = [*rows]
    told = [Symptom.of_row(row) for row in rows if row["kind"] == "symptom"]
    return sorted([*told, *Diagnosis(Setup.of(recipe)).catch_up(rows, filmstrip)], key=lambda symptom: symptom.step)
