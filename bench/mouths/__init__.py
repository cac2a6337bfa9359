"""`python -m bench.mouths`: drawn mouths and eyes, beside another checkout's and real ones."""
