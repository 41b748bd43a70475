"""Reports on training runs: curves, and one page with everything."""
