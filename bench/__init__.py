"""What backendops costs beside what people use today: same server, same rows, one run, ratios."""
