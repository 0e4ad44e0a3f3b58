"""A study of hybrid CNN-VSSM models for multi-view, multi-task mammography.

The section "Where to read what" in the README lists every module and the order in which to read the paper's path.
"""

__version__ = "0.1.0"
