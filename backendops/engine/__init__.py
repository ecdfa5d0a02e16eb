"""Runs any pair of job and backend the same way, one committed step at a time."""
