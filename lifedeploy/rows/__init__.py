"""The rows of the table of methods, a file for each of them or for some of a kind; :mod:`lifedeploy.methods` has the
table."""
