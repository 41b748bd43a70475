"""What a run left, shown: its curves, and a page of all of it."""
