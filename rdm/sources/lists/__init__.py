"""Lists of URLs, boxes and ids: CSV, TSV, text and Parquet, read strictly."""
