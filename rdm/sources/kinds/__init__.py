"""The sources that users name, one file a scheme."""
