"""Lists of videos: their formats, manifests, mixtures, class names, and the order of samples."""
