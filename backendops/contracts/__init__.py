"""What jobs and backends promise each other; imports no other package of ours."""
