"""Scores of the runs, and what they are compared with: chance, other systems, shortcuts and the paper."""
