"""What is said to whoever typed the command: progress, one line per job, terminals of any width, spelling."""
