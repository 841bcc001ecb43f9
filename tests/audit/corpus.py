"""A made-up data set without any fault that the audit knows, and one planter for each of those faults.

A planter takes the clean pairs and returns the pairs with the fault, and the ids that must be named.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from likelier.records import Message, Pair


def words(text: str, between: str | None = None) -> list[str]:
    return text.split(between)


PEOPLE = words("gardener baker teacher sailor painter doctor farmer writer pilot carpenter nurse driver miller potter tailor singer")
MANNERS = words("careful quiet young tired famous clever patient cheerful honest curious gentle stubborn lonely busy wealthy modest")
DEEDS = words("paints repairs carries studies sells borrows cleans measures photographs describes forgets collects polishes remembers hides draws")
THINGS = words("bridges clocks boats letters tables lamps maps roses violins windows ladders baskets coats stones bicycles kettles")
LOOKS = words("wooden silver broken narrow heavy ancient yellow foreign borrowed hollow crooked painted plain rusty tiny enormous")
ENDS = words("again today yesterday nearby upstairs downtown outdoors abroad twice alone together slowly")
TIMES = words(
    "every morning|before the long winter|after a warm breakfast|on rainy afternoons|near the old harbour|behind the village church|"
    "without any hurry|for the summer market|until late at night|with two good friends|beside the slow river|in a crowded workshop",
    "|",
)


def sentence(draw: random.Random) -> str:
    manner, person, deed, look, thing = (draw.choice(words) for words in (MANNERS, PEOPLE, DEEDS, LOOKS, THINGS))
    return f"The {manner} {person} {deed} the {look} {thing} {draw.choice(TIMES)} {draw.choice(ENDS)}."


def text(draw: random.Random, sentences: int) -> str:
    return " ".join(sentence(draw) for _ in range(sentences))


def pair(name: str, prompt: str, chosen: str, rejected: str, **extras: object) -> Pair:
    return Pair((Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),), id=name, **extras)


def clean(count: int = 400, seed: int = 0) -> list[Pair]:
    """Both sides are drawn alike, of lengths drawn alike; three reasons and two annotators take turns."""
    draw = random.Random(seed)
    return [
        pair(
            f"clean-{i}",
            f"Tell me about the {draw.choice(MANNERS)} {draw.choice(PEOPLE)} and the {draw.choice(LOOKS)} {draw.choice(THINGS)} number {i}?",
            text(draw, draw.randint(2, 4)),
            text(draw, draw.randint(2, 4)),
            reason=("wrong", "rude", "vague")[i % 3],
            annotator=("ada", "ben")[i % 2],
        )
        for i in range(count)
    ]


def said(side: tuple[Message, ...]) -> str:
    return side[-1].content


def asked(words: str) -> tuple[Message, ...]:
    return (Message("user", words),)


def reply(words: str) -> tuple[Message, ...]:
    return (Message("assistant", words),)


Planted = tuple[list[Pair], set[str]]
Planter = Callable[[list[Pair]], Planted]


def changed(pairs: list[Pair], every: int, change: Callable[[Pair], Pair]) -> Planted:
    """The pairs, each `every`th of them changed."""
    return [change(p) if i % every == 0 else p for i, p in enumerate(pairs)], {p.id for i, p in enumerate(pairs) if i % every == 0}


def longer_chosen(pairs: list[Pair]) -> Planted:
    return changed(pairs, 2, lambda p: replace(p, chosen=reply(f"{said(p.chosen)} {said(p.rejected)}")))[0], set()


def out_of_proportion(pairs: list[Pair]) -> Planted:
    return changed(pairs, 2, lambda p: replace(p, rejected=reply(" ".join([said(p.chosen)] * 3))))


def nearly_identical(pairs: list[Pair]) -> Planted:
    return changed(pairs, 20, lambda p: replace(p, rejected=reply(said(p.chosen).replace("The", "A", 1))))


def same_but_for_case(pairs: list[Pair]) -> Planted:
    return changed(pairs, 20, lambda p: replace(p, rejected=reply(said(p.chosen).upper())))


def stops_in_the_middle(pairs: list[Pair]) -> Planted:
    return changed(pairs, 10, lambda p: replace(p, rejected=reply(said(p.rejected).rpartition(" ")[0])))


def repeated(pairs: list[Pair]) -> Planted:
    copies = [replace(p, id=f"copy-{p.id}", prompt=(Message("user", f"  {said(p.prompt).upper()}"),)) for p in pairs[::20]]
    return pairs + copies, {p.id for p in copies}


def nearly_repeated(pairs: list[Pair]) -> Planted:
    copies = [replace(p, id=f"near-{p.id}", chosen=reply(f"{said(p.chosen)} Indeed.")) for p in pairs[::8]]
    return pairs + copies, {p.id for p in copies}


def contradicted(pairs: list[Pair]) -> Planted:
    opposites = [replace(p, id=f"no-{p.id}", chosen=p.rejected, rejected=p.chosen) for p in pairs[::40]]
    return pairs + opposites, {p.id for p in opposites} | {p.id for p in pairs[::40]}


def circular(pairs: list[Pair]) -> Planted:
    draw, planted = random.Random(1), []
    for p in pairs[::100]:
        a, b, c = (reply(text(draw, 3)) for _ in range(3))
        planted += [replace(p, id=f"{name}-{p.id}", chosen=x, rejected=y) for name, x, y in (("ab", a, b), ("bc", b, c), ("ca", c, a))]
    return pairs + planted, {p.id for p in planted}


def with_a_surface(pairs: list[Pair]) -> Planted:
    return courteous(pairs)[0], set()


def courteous(pairs: list[Pair]) -> Planted:
    """A word that tells the sides apart, in nine of ten pairs, on the rejected side."""
    return [replace(p, rejected=reply(f"Certainly! {said(p.rejected)}")) if i % 10 else p for i, p in enumerate(pairs)], {
        p.id for i, p in enumerate(pairs) if i % 10
    }


def flipped(pairs: list[Pair]) -> Planted:
    """Good sides speak of honesty and bad ones of profit; of one pair in six the label is turned round."""
    good, bad = "Honesty counts above everything.", "Profit rules over all else."
    told = [replace(p, chosen=reply(f"{said(p.chosen)} {good}"), rejected=reply(f"{said(p.rejected)} {bad}")) for p in pairs]
    return changed(told, 6, lambda p: replace(p, chosen=p.rejected, rejected=p.chosen))


def one_reason(pairs: list[Pair]) -> Planted:
    return [replace(p, reason="wrong" if i % 5 else "rude") for i, p in enumerate(pairs)], {p.id for i, p in enumerate(pairs) if i % 5}


def one_opening(pairs: list[Pair]) -> Planted:
    return changed(pairs, 4, lambda p: replace(p, rejected=reply(f"Dear valued customer, {said(p.rejected)}")))


def refusing(pairs: list[Pair]) -> Planted:
    return changed(pairs, 2, lambda p: replace(p, chosen=reply(f"I cannot help with that. {said(p.chosen)}")))


def in_german(pairs: list[Pair]) -> Planted:
    german = "Der alte Gärtner giesst jeden Morgen die kleinen Rosen vor dem Haus, und danach trinkt er in aller Ruhe seinen Kaffee."
    return changed(pairs, 20, lambda p: replace(p, rejected=reply(f"{german} {german}")))


def with_a_key(pairs: list[Pair]) -> Planted:
    key = "sk-" + "proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2"
    return changed(pairs, 100, lambda p: replace(p, chosen=reply(f"{said(p.chosen)} Use {key} for it.")))


def with_addresses(pairs: list[Pair]) -> Planted:
    return changed(pairs, 20, lambda p: replace(p, chosen=reply(f"{said(p.chosen)} Write to {p.id}@harbour.net.")))


def one_kind_of_prompt(pairs: list[Pair]) -> Planted:
    question = "How do I reset the password of my hosting account, please, it is urgent and ticket {} says nothing?"
    return [replace(p, prompt=(Message("user", question.format(i)),)) if i % 5 else p for i, p in enumerate(pairs)], set()


def disagreeing(pairs: list[Pair]) -> Planted:
    """Both annotators judge every pair, and as often as not the other way round."""
    draw = random.Random(2)
    turned = {p.id for p in pairs if draw.random() < 0.5}
    second = [replace(p, chosen=p.rejected, rejected=p.chosen) if p.id in turned else p for p in pairs]
    second = [replace(p, id=f"second-{p.id}", annotator="cleo") for p in second]
    return pairs + second, set()


def biased_annotator(pairs: list[Pair]) -> Planted:
    def taste(p: Pair) -> Pair:
        longer, shorter = sorted((p.chosen, p.rejected), key=lambda side: -len(said(side)))
        return replace(p, annotator="dora", chosen=longer, rejected=shorter)

    return changed(pairs, 4, taste)[0], set()


PLANTERS: list[tuple[str, str, Planter]] = [
    ("length-bias", "warn", longer_chosen),
    ("length-ratio", "warn", out_of_proportion),
    ("near-identical-sides", "warn", nearly_identical),
    ("near-identical-sides", "warn", same_but_for_case),
    ("cut-off-sides", "warn", stops_in_the_middle),
    ("duplicates", "warn", repeated),
    ("near-duplicates", "warn", nearly_repeated),
    ("contradictions", "warn", contradicted),
    ("preference-cycles", "warn", circular),
    ("surface-features", "warn", with_a_surface),
    ("one-sided-artefacts", "warn", courteous),
    ("label-noise", "note", flipped),
    ("rejection-types", "warn", one_reason),
    ("rejection-types", "warn", one_opening),
    ("refusals", "warn", refusing),
    ("languages", "warn", in_german),
    ("secrets", "fatal", with_a_key),
    ("personal-data", "warn", with_addresses),
    ("prompt-coverage", "warn", one_kind_of_prompt),
    ("annotators", "warn", disagreeing),
    ("annotators", "note", biased_annotator),
]
"""(check that must speak, verdict that it must give at least, what it is given)."""
