"""NIMA: neural image assessment (Talebi and Milanfar, 2018)."""
