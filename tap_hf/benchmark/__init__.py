"""Methods side by side: run them over seeds, and compare what came out."""
