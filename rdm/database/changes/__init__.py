"""Plans of updates, differences of versions, and compaction."""
