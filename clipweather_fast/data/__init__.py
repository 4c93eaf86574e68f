"""Pictures to learn from and to judge by."""
