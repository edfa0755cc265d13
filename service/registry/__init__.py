"""What is served under which name."""
