"""Street scenes that a program draws: a data set to try everything with."""
