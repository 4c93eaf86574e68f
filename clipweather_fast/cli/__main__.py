"""``python -m clipweather_fast.cli`` is the command ``clipweather``."""

from clipweather_fast.cli.application import main

if __name__ == "__main__":  # not in the processes of `clipweather eval`, which import this
    main()
