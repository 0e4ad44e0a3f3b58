"""From data sets on disk to the exam table, with every exclusion and its reason."""
