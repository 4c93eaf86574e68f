"""``python -m clipweather_fast.cli`` is the command ``clipweather``."""

from clipweather_fast.cli.application import main

main()
