"""Classification: multi-view evaluation, scores, and names for videos without labels."""
