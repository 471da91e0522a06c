"""The verbs of `vmae2 data`: check, prepare, pack, index, merge, and the set that is made."""
