"""What goes wrong on many ranks, noticed early: at the start, hangs, lost ranks, signals, spikes, slow loaders."""
