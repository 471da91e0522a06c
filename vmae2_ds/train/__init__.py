"""The training loop on the DeepSpeed engine, its optimizer, metrics and checkpoints."""
