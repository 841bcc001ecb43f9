"""An evaluation in the terminal."""

from rich.console import Console

from likelier.evaluate import show_evaluation


def test_names_that_users_gave_are_shown_as_they_are(capsys):
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    parts = {"pairs": 4, "accuracy": interval, "margin": interval}
    probe = {"title": "[bold] prices :smile:", "unit": "share", "better": "none", "items": 4, "before": interval, "after": interval}
    evaluation = {
        "dataset": "0" * 64,
        "pairs": 4,
        "reward": "of [/INST]",
        "held_out": {},
        "by": {"group": {"[/INST]": parts, "[rude] tone": parts}},
        "probes": [{**probe, "difference": interval}],
    }
    show_evaluation(evaluation, Console(width=200))
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("reward: of [/INST]", "[/INST] ", "[rude] tone", "[bold] prices :smile:"))
