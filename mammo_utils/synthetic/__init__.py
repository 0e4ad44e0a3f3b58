"""The synthetic cohort: drawn and written to disk in the real release's own format."""

from mammo_utils.synthetic.release import write_release

__all__ = ["write_release"]
