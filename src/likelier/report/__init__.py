"""A run directory as one HTML page that stands alone."""

from likelier.report.build import write_report

__all__ = ["write_report"]
