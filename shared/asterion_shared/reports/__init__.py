"""What people look at: pages, pictures, curves, and lines in a terminal."""
