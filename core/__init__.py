"""The workshop: tools that every project uses; importing it costs nothing."""
