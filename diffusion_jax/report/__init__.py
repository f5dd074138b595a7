"""The page of a run, report.html: what lies in its folder, in one file that needs no network."""
