"""From where on a curve is a symptom: every threshold of rules.py. They are set wide, so that a healthy run shows nothing.

Learning rate, β and epochs have theirs in train/advice.py, which `likelier plan` reads, too.
"""

FALL = 0.25
"""Share of its log-probability under the reference that the chosen side may lose while the rejected side loses too. Zephyr's (Tunstall et al. 2023)
lost about a sixth at β = 0.1 and is a good model: a fall is normal, a quarter is much."""

COLLAPSE = 0.5
"""The same share, from which the chosen replies themselves are being unlearnt: a token's probability p has become p^1.5 on (geometric) average."""

FALL_NATS = 10.0
"""Nats a reply below which neither is spoken of: of short, sure replies a few nats are a large share."""

FLAT_LOSS = 0.02
"""Relative change of the loss since the first step, in either direction, below which it has not moved by half of the run."""

AT_CHANCE = 0.6
"""Accuracy up to which pairs are told apart no better than by a coin, or hardly."""

NOT_AT_CHANCE = 0.75
"""The plateau is only called where the upper end of the accuracy's 95% interval is below this: ten pairs show nothing."""

GAP = 0.2
"""Accuracy on training pairs above that on held-out pairs, where the 95% intervals of both do not meet."""

LOSS_RISE = 1.2
"""Held-out loss over its lowest, twice in a row, while the training loss falls."""

SPIKE = 10.0
"""Gradient norm over the median of the last 20, and SPIKE_PEAK times the largest of the last 100: where pairs are learnt, norms fall and a pair that
is not yet learnt stands out without harm; a norm beyond all that was before is another thing. Norms below max_grad_norm are not told."""

SPIKE_PEAK = 2.0

STILL = 0.2
"""Nats a reply by which both sides' mean log-probabilities may differ from the reference's by rounding alone (bf16 shows 0.1)."""

LENGTH_RISE = 1.5
"""Mean length of the watched replies over that before training; and LENGTH_TOKENS more."""

LENGTH_TOKENS = 8

LENGTH_FALL = 0.2
"""The same ratio, below which hardly a reply is left. The demo's replies become 0.4 times as long, which is its lesson."""

MORE_OFTEN = 0.5
"""Share of the watched replies that apologise, refuse or no longer end, above the share before training; two replies at least."""

REPETITION = 0.3
"""Mean share of repeated 4-grams in the watched replies; and REPETITION_RISE above that before training, as small models repeat themselves anyway."""

REPETITION_RISE = 0.2

KL_BUDGET = 30.0
"""Nats a reply of up to 64 tokens. The demo ends near 5. Gao et al. 2023 (RLHF's over-optimisation) see the true reward turn between 20 and 100."""
