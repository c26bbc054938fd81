"""The repository as data: tree, names, commands, configurations, pinned versions."""
