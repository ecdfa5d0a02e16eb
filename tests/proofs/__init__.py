"""Proofs too long for the suite, each a program: `python -m tests.proofs.convert`."""
