"""All checks of an audit, by name and in the order in which they are shown. A new one is a function and a row here."""

from collections.abc import Callable

from likelier.audit.checks import content, labels, shortcuts, sides
from likelier.audit.findings import Finding
from likelier.audit.table import Table
from likelier.thresholds import AuditSettings

Check = Callable[[Table, AuditSettings], Finding]

CHECKS: dict[str, Check] = {
    "length-bias": sides.length_bias,
    "length-ratio": sides.length_ratio,
    "surface-features": shortcuts.surface_features,
    "one-sided-artefacts": shortcuts.artefacts,
    "rejection-types": shortcuts.rejection_types,
    "refusals": shortcuts.refusals,
    "near-identical-sides": sides.near_identical,
    "cut-off-sides": sides.cut_off,
    "over-long": sides.over_long,
    "contradictions": labels.contradictions,
    "preference-cycles": labels.cycles,
    "label-noise": labels.label_noise,
    "annotators": labels.annotators,
    "duplicates": content.duplicates,
    "near-duplicates": content.near_duplicates,
    "languages": content.languages,
    "secrets": content.secrets,
    "personal-data": content.personal_data,
    "prompt-coverage": content.prompt_coverage,
}
