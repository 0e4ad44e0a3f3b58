"""Models: encoders, fusion, systems, the selective scan, and what they cost."""
