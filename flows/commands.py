"""The `vpo` commands that need Prefect, as entry points of the group `vpo_plugin.commands`; each imports lazily."""


def run(arguments: list[str]) -> int:
    """run a flow from a YAML file of settings"""
    from flows.run import main

    return main(arguments)


def experiment(arguments: list[str]) -> int:
    """train and compare several methods and seeds at matched compute"""
    from flows.settings import ExperimentSettings
    from vpo_plugin.cli.settings import read

    settings = read(ExperimentSettings, arguments, "vpo experiment")
    from flows.experiment import main

    return main(settings)


def registry(arguments: list[str]) -> int:
    """list, show and roll back the policies that retraining made"""
    from flows.registry_command import main

    return main(arguments)
