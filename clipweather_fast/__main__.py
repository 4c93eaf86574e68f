"""``python -m clipweather_fast`` is the command ``clipweather``."""

from clipweather_fast.cli import main

main()
