"""From exams on the device to a trained run and its files."""
