"""SIGKILL at random moments, to the process and to the server: nothing may be lost, doubled or changed."""
