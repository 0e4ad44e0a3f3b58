"""The fixture of made-up runs."""

from tests.evaluation.fakes import fake_study

__all__ = ["fake_study"]
