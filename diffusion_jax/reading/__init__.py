"""Files that an earlier start, or a user, has left: read without trust in what they hold."""
