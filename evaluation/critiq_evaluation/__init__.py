"""Judging models against people: human-rated datasets, the papers' protocols, calibration, thresholds, drift."""
