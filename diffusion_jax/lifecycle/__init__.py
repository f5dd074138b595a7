"""The life of a command beside others: which folders are its own, and whether it was asked to stop."""
