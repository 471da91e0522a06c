"""What can be asked for: frozen models, their limits, and the numbers that follow from them before anything runs."""
