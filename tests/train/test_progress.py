"""What a person sees while a run is under way."""

from rich.console import Console

from likelier.train.progress import Bars


def test_what_is_said_is_shown_as_it_is(capsys):
    bars = Bars(Console(width=200))
    for text in ("group [/INST]", "[rude] tone :smile:"):
        bars.say(text)
        assert capsys.readouterr().out == f"{text}\n"
