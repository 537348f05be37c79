"""``python -m lifedeploy``."""

from lifedeploy.cli.app import main

main()
