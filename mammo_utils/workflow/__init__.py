"""Executing a study: notebooks, states, reports."""
