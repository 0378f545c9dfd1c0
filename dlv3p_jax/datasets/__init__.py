"""The data sets that `prepare` makes, and how it reads what people have."""
