"""What DeepSpeed gets silently wrong: small cases, each against plain PyTorch, at every ZeRO policy that we allow.

`make deepspeed VERSION=0.19.3` runs them with that version, in an environment of its own. docs/DEEPSPEED.md is made from the
rows.
"""
