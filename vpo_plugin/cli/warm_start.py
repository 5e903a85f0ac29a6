"""`vpo warm_start`."""

from vpo_plugin.cli.settings import read
from vpo_plugin.search.warm_start import WarmStartSettings, warm_start


def main(arguments: list[str]) -> int:
    """Teach the format, and print the share of readable candidates before and after."""
    print(warm_start(read(WarmStartSettings, arguments, "vpo warm_start")))
    return 0
