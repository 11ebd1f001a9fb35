"""The quickstart's report: its pictures, its data, its one page."""
