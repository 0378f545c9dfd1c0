"""What training reads, and what a picture, a label and a class are."""
