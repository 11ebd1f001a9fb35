"""The drawing: from conditions and a start to pictures, in canonical batches, and attribution."""
