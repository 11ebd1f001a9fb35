"""What an update changes, what changed between versions, and compaction."""
