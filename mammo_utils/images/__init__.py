"""Decoding, preprocessing and the image store."""
