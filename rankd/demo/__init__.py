"""`rankd demo`: a small language model trains here and now, and one of its layers collapses from a real cause."""
