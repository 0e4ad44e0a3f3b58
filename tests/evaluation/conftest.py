"""Make the fixture of fake runs available to these tests."""

from tests.evaluation.fakes import fake_study

__all__ = ["fake_study"]
