"""Blocks shared by detectors."""
