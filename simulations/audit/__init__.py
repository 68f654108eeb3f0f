"""What a private federation leaks to an honest-but-curious server, measured by attacks; see docs/auditing.md."""
