"""A synthetic cohort, drawn and written to disk in the format of the real release."""

from mammo_utils.synthetic.release import write_release

__all__ = ["write_release"]
