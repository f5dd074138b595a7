"""What is measured of a trained model on a whole data set."""
