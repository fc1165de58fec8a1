"""One offline HTML report: what was left out, what it cost, what it won, and how that is known."""

from skimp.report.build import ReportError, render, write
from skimp.report.data import ReportData

__all__ = ["ReportData", "ReportError", "render", "write"]
