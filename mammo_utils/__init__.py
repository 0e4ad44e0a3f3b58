"""A study of hybrid CNN-VSSM models for multi-view, multi-task mammography."""

__version__ = "0.1.0"
