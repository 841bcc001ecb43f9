"""From where on a property of preference data is worth a word, with the reason for each limit. A recipe may set them under `audit`.

A limit called `…_note` or `…_warn` is a share (or the named quantity) at or above which a check says so. What is fatal is not a matter of degree
(ties, empty or identical sides, contradictions beyond `contradictions_fatal`, credentials, prompts on both sides of a split): training on it is
wrong whatever its owner wants. A check of the pairs can be accepted by name; a row that is no pair cannot be trained on at all.

Sources: Singhal et al. 2023 (A Long Way to Go), Park et al. 2024 (Disentangling Length from Quality in DPO), Pal et al. 2024 (Smaug: DPO-Positive),
Razin et al. 2024 (Unintentional Unalignment), Lee et al. 2021 (Deduplicating Training Data), Krippendorff 2004 (Content Analysis), Landis & Koch
1977 (Measurement of Observer Agreement), Northcutt et al. 2021 (Confident Learning), Benjamini & Hochberg 1995 (False Discovery Rate).
"""

from typing import Annotated

from pydantic import Field

from likelier.section import Count, Fraction, Positive, Section


class AuditSettings(Section):
    accept: tuple[str, ...] = ()
    """Checks whose fatal findings do not keep `train` from training, by name. Written into the manifest and the report."""
    length_bias_note: Fraction = 0.05
    """How far from one half the longer side's win rate may be. Singhal et al. 2023 find that most of what RLHF gains can be length alone."""
    length_bias_warn: Fraction = 0.15
    """65% of wins for one length is what a model picks up first (Park et al. 2024: DPO exploits it more than the reward model that labelled it)."""
    length_ratio: Positive = 2.0
    """A side is out of proportion beyond this many times the other's length."""
    length_ratio_short: Count = 80
    """Characters up to which the longer side is not out of proportion: "Yes." beside a sentence is no fault."""
    length_ratio_warn: Fraction = 0.3
    """Share of pairs out of proportion. In natural comparisons a fifth is common."""
    near_identical: Annotated[float, Field(ge=0.8, le=1)] = 0.95
    """Similarity of two sides (1 − indel distance / total length) from which their gradients nearly cancel, and with what is left DPO pushes the
    common tokens down (Pal et al. 2024, Razin et al. 2024)."""
    near_identical_warn: Fraction = 0.02
    """Share of such pairs: Razin et al. 2024 see displacement from a small part of the data, once it is this alike."""
    near_duplicate: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """Jaccard similarity of word pairs from which two texts are one: the value of Lee et al. 2021."""
    duplicates_warn: Fraction = 0.01
    """Share of pairs that repeat another one exactly: each is a weight that nobody chose."""
    near_duplicates_warn: Fraction = 0.1
    """Share of pairs that nearly repeat another one (Lee et al. 2021 find 3 to 14% in common corpora)."""
    contradictions_fatal: Fraction = 0.05
    """Share of pairs whose opposite is in the data too: their gradients cancel, and so many are a fault of export, not of opinion."""
    cut_off_note: Fraction = 0.02
    """Share of sides that end in the middle (without a closing mark, or with an open code block) while the other side has one."""
    cut_off_odds: Positive = 2.0
    """How many times more often one side ends so than the other before the ending becomes the label."""
    over_long_warn: Fraction = 0.02
    """Share of pairs beyond the model's length limit; each is dropped."""
    over_long_fatal: Fraction = 0.5
    """When most pairs are dropped, what is trained on is another data set."""
    surface_note: Fraction = 0.6
    """AUC with which surface features alone tell chosen from rejected. 0.5 is chance; human comparisons reach 0.6 to 0.7 by length and tone."""
    surface_warn: Fraction = 0.8
    """From here on a model needs to read nothing to be right."""
    artefact_odds: Positive = 3.0
    """Odds ratio between the sides at which a word or mark gives the label away."""
    artefact_share: Fraction = 0.02
    """Share of pairs that must show it on exactly one side, else it cannot matter."""
    artefact_warn: Fraction = 0.2
    """Share of pairs from which such a mark is a lesson of its own."""
    false_discovery: Fraction = 0.01
    """Expected share of false alarms among all words and marks that are reported (Benjamini & Hochberg 1995)."""
    language_note: Fraction = 0.02
    """Share of pairs outside the main language, or with sides in different ones."""
    language_differs_warn: Fraction = 0.02
    """Share of pairs whose sides are in different languages: the language becomes the label."""
    one_reason_warn: Fraction = 0.6
    """Share of one `reason` among all: the model learns to avoid this one fault."""
    one_opening_warn: Fraction = 0.15
    """Share of rejected sides that open with the same three words while chosen ones do not."""
    refusals_note: Fraction = 0.1
    """Share of chosen sides that refuse."""
    refusals_warn: Fraction = 0.3
    """Beyond it refusing is the lesson: over-refusal follows (Röttger et al. 2024, XSTest)."""
    personal_data_warn: Fraction = 0.02
    """Share of pairs with mail addresses, phone or card numbers: what is trained on can be said again (Carlini et al. 2021)."""
    one_cluster_warn: Fraction = 0.5
    """Share of prompts in the largest cluster of similar ones."""
    noise_note: Fraction = 0.05
    """Estimated share of flipped labels; label smoothing or a robust objective pays from about here on."""
    noise_warn: Fraction = 0.15
    """Human preference data is said to hold 20 to 40% disagreement; from here on mend it first, or take IPO or robust DPO."""
    agreement_note: Fraction = 0.667
    """Krippendorff's α below which he allows no more than tentative conclusions (2004, p. 241)."""
    agreement_warn: Fraction = 0.2
    """α up to which agreement is "slight" (Landis & Koch 1977)."""
    annotator_bias: Fraction = 0.15
    """How far one annotator's preference for the longer side may be from that of all others."""
    annotator_items: Count = 20
    """Judgements that an annotator must have given before anything is said about him or her."""
    sample: Count = 5000
    """Pairs (chosen by a hash of their content) of which whole texts are compared, for prompt clusters and label noise."""
    fitted: Count = 100_000
    """Pairs, chosen alike, to which the classifier of surface features is fitted: more do not move its AUC."""
