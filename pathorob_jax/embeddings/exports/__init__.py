"""What other tools read: one writer per format, streamed from a store."""
