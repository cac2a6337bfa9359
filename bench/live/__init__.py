"""`fada bench live`: many live sessions at once, and whether they keep real time."""
