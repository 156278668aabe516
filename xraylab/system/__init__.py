"""The machine: files, paths, progress, remote places, processes, signals. Nothing here knows of radiology."""
