"""Starting runs on clusters: the batch script or the exact command lines, checked before they are written."""
