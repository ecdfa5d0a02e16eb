"""The daemon: runs the policy's jobs on their schedules and serves what it knows over HTTP."""
