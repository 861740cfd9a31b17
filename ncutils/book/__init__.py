"""What draws the book: it stands on the library, which knows nothing of it."""
