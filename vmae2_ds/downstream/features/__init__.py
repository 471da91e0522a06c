"""Features of long videos: which frames a window has, each frame decoded once, and the folder of files that others read."""
